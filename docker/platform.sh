# For docker/build and docker/build-base: which program builds, for which processors, and under which tags.
engine=${CONTAINER_ENGINE:-$(command -v podman || command -v docker || true)}
[ -n "$engine" ] || { echo "$0: neither podman nor docker is here; apt-get install podman" >&2; exit 1; }

case $(uname -m) in
  x86_64) own=linux/amd64 ;;
  aarch64 | arm64) own=linux/arm64 ;;
  *) echo "$0: there are no wheels of torch for this processor, $(uname -m); give PLATFORM=linux/amd64 or linux/arm64" >&2; exit 2 ;;
esac

# What a tag is to end in: this machine's images have plain names, so that another processor's never take their place.
suffix() { # platform
  [ "$1" = "$own" ] || echo "${1#linux/}"
}

# Leave with the remedy where the programs of a platform do not run here.
check_platform() { # platform
  case $1 in
    "$own") return ;;
    linux/amd64) machine=x86_64 ;;
    linux/arm64) machine=aarch64 ;;
    *) echo "$0: there are no wheels of torch for $1; give PLATFORM=linux/amd64 or linux/arm64" >&2; exit 2 ;;
  esac
  # Docker may have a builder elsewhere. F: the emulator is open already, for it is not in the image.
  case $engine in *podman) ;; *) return ;; esac
  [ ! -d /proc/sys/fs ] || grep -qsE '^flags:.*F' /proc/sys/fs/binfmt_misc/*"$machine"* || {
    echo "$0: programs for $1 do not run here: apt-get install qemu-user-static; and where systemd does not do it, as root:" >&2
    echo "  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc" >&2
    echo "  cat /usr/lib/binfmt.d/qemu-$machine.conf >/proc/sys/fs/binfmt_misc/register" >&2
    exit 1
  }
}
