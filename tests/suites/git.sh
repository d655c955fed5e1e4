#!/usr/bin/env bash
# git: a repository of thousands of files and some history lives on the mount.
# shellcheck source=tests/suites/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
suite git
volume

export HOME=$WORK GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_AUTHOR_DATE='1700000000 +0000'
export GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@example.org GIT_COMMITTER_DATE='1700000000 +0000'
git config --global advice.detachedHead false
git config --global safe.directory '*'
git config --global init.defaultBranch main

# A repository of 5,000 files, 60 commits and two branches, the same in every run.
make_origin() {
    git init -q --bare "$WORK/origin.git"
    "$PYTHON" - <<'END' | git -C "$WORK/origin.git" fast-import --quiet
import random, sys
chance, out = random.Random(7), sys.stdout.buffer
def emit(text): out.write(text.encode())
def blob(path):
    lines = chance.randrange(1, 120)
    body = "".join(f"{path} {chance.randrange(1 << 30):x}\n" for _ in range(lines))
    mode = chance.choice(["100644"] * 9 + ["100755"])
    if chance.random() < 0.02:
        mode, body = "120000", f"target-{chance.randrange(1000)}"
    emit(f"M {mode} inline {path}\ndata {len(body)}\n{body}\n")
paths = [f"dir{i % 40}/sub{i % 7}/file-{i}-{'x' * (i % 60)}.txt" for i in range(5000)]
def commit(branch, number, parent, changed):
    emit(f"commit refs/heads/{branch}\nmark :{number + 1}\ncommitter c <c@example.org> {1700000000 + number} +0000\n")
    message = f"commit {number} of {branch}"
    emit(f"data {len(message)}\n{message}\n")
    if parent: emit(f"from {parent}\n")
    for path in changed: blob(path)
commit("main", 0, None, paths)
for number in range(1, 40): commit("main", number, None, chance.sample(paths, 50))
commit("side", 100, ":20", chance.sample(paths, 1500))
for number in range(101, 120): commit("side", number, None, chance.sample(paths, 50))
END
    git -C "$WORK/origin.git" symbolic-ref HEAD refs/heads/main
}

clone() { git clone -q --no-local "$WORK/origin.git" clone; }
state() {
    git -C clone rev-parse HEAD 'HEAD^{tree}'
    git -C clone ls-files -s | sha256sum
    git -C clone status --porcelain
}
is_clean() { [ -z "$(git -C "$DIR/clone" status --porcelain)" ]; }
# The index remembers inode numbers and times: a plumbing command trusts them as they are.
index_is_current() {
    git -C "$DIR/clone" diff-files | head
    git -C "$DIR/clone" diff-files --quiet
}
whole() { git -C "$DIR/clone" fsck --full --strict --no-dangling; }
collect() { git -C "$DIR/clone" gc -q --prune=now && whole; }
switch_branches() {
    local round
    for round in 1 2 3; do
        git -C clone checkout -q side
        git -C clone checkout -q main
        git -C clone checkout -q "main~$((round * 9))"
    done
    git -C clone checkout -q side
    state
}
work_as_people_do() {
    cd clone
    git checkout -q -b work main
    git rm -qr dir3
    git mv dir4 dir4-renamed
    echo changed >>dir5/sub5/added
    git add -A
    git commit -q -m 'Change a tree'
    git merge -q -X ours -m 'Merge side' side || git commit -qam 'Merge side, by force'
    git stash -q 2>/dev/null || true
    echo more >>dir5/sub5/added
    git stash -q
    git stash pop -q
    git reset -q --hard
    git clean -qfdx
    cd ..
    state
}
clone_on_the_mount() {
    # A local clone links the object files.
    git clone -q "$DIR/clone" "$DIR/second"
    git -C "$DIR/second" fsck --full --strict
    git -C "$DIR/clone" worktree add -q "$DIR/worktree" main
    [ -z "$(git -C "$DIR/worktree" status --porcelain)" ]
}
push() {
    git -C "$DIR/second" push -q "$WORK/origin.git" HEAD:refs/heads/pushed
    git -C "$WORK/origin.git" fsck --full --strict
}

check 'the repository to clone is made' make_origin
check 'clones it' same clone
check 'has the same commit, index and state' same state
check 'fsck finds it whole' whole
check 'the work tree is the same' same_tree "$REFERENCE/clone" "$DIR/clone" --no-times --skip .git
check 'switches between branches' same switch_branches
check 'the work tree is the same after that' same_tree "$REFERENCE/clone" "$DIR/clone" --no-times --skip .git
check 'the state is clean' is_clean
check 'gc, then fsck' collect
check 'is mounted again' remount
check 'the index holds after the mount' index_is_current
check 'the state is clean after the mount' is_clean
check 'commits, merges, stashes, resets' same work_as_people_do
check 'clones on the mount, adds a work tree' clone_on_the_mount
check 'pushes from the mount' push
check 'fsck finds it whole at the end' whole
finish
