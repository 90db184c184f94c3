"""A pytest plugin for tests of other projects, which run in a process of their own: models that they would fetch are files that
the variable STAND_INS names (JSON: repository -> path), and packages that they import and do not use need not be there."""

import importlib.util
import json
import os
import sys
from types import ModuleType
from typing import Any


def pytest_configure(config: Any) -> None:
    import huggingface_hub

    files = json.loads(os.environ["STAND_INS"])
    huggingface_hub.hf_hub_download = lambda repo_id, filename, **more: files[repo_id]
    if importlib.util.find_spec("scipy") is None:
        special: Any = ModuleType("scipy.special")
        special.log_softmax = None  # imported, and never called
        sys.modules["scipy"], sys.modules["scipy.special"] = ModuleType("scipy"), special
