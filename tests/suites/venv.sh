#!/usr/bin/env bash
# A Python virtual environment on the mount: made, a package installed from a wheel
# made here (no network), used, and used again after another mount.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite venv
volume

make_wheel() {
    "$PYTHON" - "$WORK" <<'END'
import base64, hashlib, sys, zipfile
files = {f"sample_package/part{i}.py": f"VALUE = {i}\n" for i in range(100)}
files["sample_package/__init__.py"] = """import importlib
def total():
    return sum(importlib.import_module(f"sample_package.part{i}").VALUE for i in range(100))
def main():
    print("total", total())
"""
info = "sample_package-1.0.dist-info"
files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: sample-package\nVersion: 1.0\n"
files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
files[f"{info}/entry_points.txt"] = "[console_scripts]\nsample = sample_package:main\n"
record = ""
for name, text in files.items():
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record += f"{name},sha256={digest},{len(text.encode())}\n"
files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
with zipfile.ZipFile(f"{sys.argv[1]}/sample_package-1.0-py3-none-any.whl", "w") as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
END
}

create() { "$PYTHON" -m venv env; }
install_wheel() {
    env -u PIP_FIND_LINKS ./env/bin/pip install --quiet --no-index --no-deps \
        --disable-pip-version-check "$WORK/sample_package-1.0-py3-none-any.whl"
    ./env/bin/pip --disable-pip-version-check list --format=freeze
}
# What is in the environment, but for the paths that scripts hold.
files() { find env -type f ! -name '*.pyc' -printf '%P %m\n' | sort; }
use() {
    ./env/bin/sample
    ./env/bin/python -c 'import sys, sample_package; print(sample_package.total(), sys.prefix != sys.base_prefix)'
    ./env/bin/python -m compileall -q -f env/lib
    ./env/bin/python -m json.tool <<<'{"a": 1}'
    ./env/bin/pip check --disable-pip-version-check
}

check 'a wheel is made' make_wheel
check 'makes an environment' same create
check 'installs a wheel' same install_wheel
check 'holds the same files' same files
check 'runs what is in it' same use
check 'is mounted again' remount
check 'runs after the mount' same use
check 'is removed' rm -r "$DIR/env"
finish
