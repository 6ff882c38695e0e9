"""The messages' own rules: what can be built at all, on either side."""

import pytest
from pydantic import ValidationError

from shared.messages import PAGE, Blob, Capabilities, Chunk, CoordinatorState, Grant, Message, Report

DIGEST = "ab" * 32


def every_message() -> list[type[Message]]:
    found, queue = [], [Message]
    while queue:
        subclasses = queue.pop().__subclasses__()
        found += subclasses
        queue += subclasses
    return found


@pytest.mark.parametrize("model", every_message(), ids=lambda model: model.__name__)
def test_every_message_is_frozen_strict_and_closed(model: type[Message]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["strict"]
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["allow_inf_nan"] is False


@pytest.mark.parametrize(
    ("size", "chunk", "chunks", "pages"),
    [
        (1, 512, 1, 1),
        (512, 512, 1, 1),
        (513, 512, 2, 1),
        (512 * PAGE, 512, PAGE, 1),
        (512 * PAGE + 1, 512, PAGE + 1, 2),
        (44_700_000, 122_368, 366, 23),
        (2**40, 512, 2**31, 2**27),
    ],
)
def test_a_blob_is_cut_into_chunks_and_pages(size: int, chunk: int, chunks: int, pages: int) -> None:
    blob = Blob(digest=DIGEST, size=size, chunk=chunk)
    assert (blob.chunks, blob.pages) == (chunks, pages)


@pytest.mark.parametrize("ranges", [((0, 0),), ((-1, 2),), ((0, 2**31),), ((0,),), ((0, 1),) * 65])
def test_ranges_of_chunks_are_bounded(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValidationError):
        Grant(run="r", digest=DIGEST, ranges=ranges)


def test_numbers_that_are_not_finite_are_no_metrics() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Report(run="r", round=1, examples=1, metrics={"loss": value})


def test_values_are_never_converted() -> None:
    with pytest.raises(ValidationError):
        CoordinatorState(online="yes", epoch=1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Chunk(digest=DIGEST, index=0, data="text")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Capabilities(profile="pi", train=True, memory_mib=1.5)  # type: ignore[arg-type]


def test_a_chunk_is_never_empty() -> None:
    with pytest.raises(ValidationError):
        Chunk(digest=DIGEST, index=0, data=b"")
