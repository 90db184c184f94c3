"""What tests add to the package from a folder of their own, as another package would: files, and a process that has them.

Owns the process.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

SUPPORT = Path(__file__).parent
RUN = """
import json, sys, traceback
from {module} import CHECKS
found = {{}}
for name, check in CHECKS.items():
    if name in {only!r} or not {only!r}:
        try:
            check()
            found[name] = ""
        except Exception as error:
            found[name] = f"{{type(error).__name__}}: {{error}}"
            traceback.print_exc()
print(json.dumps(found))
"""


def put(folder: Path, files: dict[str, str], mutant: tuple[str, str, str] | None = None) -> None:
    """Write the files by their paths in `folder`; of a mutant (file, old, new) that file says `new` in the place of `old`,
    which stands there once."""
    for name, text in files.items():
        body = textwrap.dedent(text)
        if mutant is not None and mutant[0] == name:
            assert body.count(mutant[1]) == 1, f"{name}: {mutant[1]!r} stands there {body.count(mutant[1])} times"
            body = body.replace(mutant[1], mutant[2])
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)


def results(folder: Path, module: str, *only: str) -> dict[str, str]:
    """By name what the functions in CHECKS of a module in `folder`, or some of them, have to object; "" = nothing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(SUPPORT)))}
    command = [sys.executable, "-c", RUN.format(module=module, only=only)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert found, "nothing was checked"
    return found
