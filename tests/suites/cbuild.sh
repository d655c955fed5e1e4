#!/usr/bin/env bash
# A C project of 200 files is compiled on the mount: the same program as on the backing
# filesystem, and make sees from the times what is to do.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite cbuild
volume

make_project() {
    "$PYTHON" - <<'END'
import os
os.makedirs("project/src")
os.chdir("project")
def put(name, text):
    with open(name, "w") as file: file.write(text)
for i in range(200):
    put(f"src/part{i}.h", f"int part{i}(int x);\n")
    uses = [j for j in (i * 2 + 1, i * 2 + 2) if j < 200]
    includes = "".join(f'#include "part{j}.h"\n' for j in uses)
    calls = "".join(f" + part{j}(x + {j})" for j in uses)
    put(f"src/part{i}.c", f'#include "part{i}.h"\n{includes}#include <string.h>\n'
        f'static const char name[] = "part {i}";\n'
        f"int part{i}(int x) {{ return (int)strlen(name) * x{calls}; }}\n")
put("src/main.c", '#include <stdio.h>\n#include "part0.h"\nint main(void) { printf("%d\\n", part0(3)); return 0; }\n')
put("Makefile", """CFLAGS = -O1 -g0
OBJECTS = $(patsubst src/%.c,build/%.o,$(wildcard src/part*.c))
program: build/main.o build/libparts.a
\t$(CC) -o $@ $^
build/libparts.a: $(OBJECTS)
\t$(AR) rcsD $@ $^
build/%.o: src/%.c
\t@mkdir -p build
\t$(CC) $(CFLAGS) -MMD -c -o $@ $<
clean:
\trm -rf build program
-include build/*.d
""")
END
}

build() {
    make -j2 -s program
    ./program
    sha256sum program
}
count_rebuilt() { make -j2 program | grep -c -- ' -c ' || true; }
nothing_to_do() { make program; }
touch_header() {
    # Times are kept to the nanosecond: no need to wait for the clock's next second.
    touch src/part7.h
    count_rebuilt
}

in_project() { cd project && "$@"; }
check 'the project is made' same make_project
check 'compiles to the same program' same in_project build
check 'has nothing to do after that' same in_project nothing_to_do
check 'compiles again what a header changed' same in_project touch_header
check 'is mounted again' remount
check 'has nothing to do after the mount' same in_project nothing_to_do
check 'cleans' same in_project make -s clean
check 'compiles to the same program again' same in_project build
finish
