"""The edge agent: trains, personalizes, prunes and serves a model on one device.

ONNX Runtime's official builds switch telemetry on by default, write a database into the user's cache and start a
thread for it, even when its own API is asked not to. Only this variable, set before the import, prevents that; so it
stands here, where nothing of the agent can be imported before it.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
