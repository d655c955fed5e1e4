//! The table of `docs/KMS.md`: each state of the key service, and what then
//! happens to an open file, a closed one whose key is in memory, one whose key is
//! not, and a new one.

use std::fs::{self, File};

use crate::common::{Mount, write_synced};
use crate::kms_servers::alibaba::{Conditions, Server, State};
use crate::*;

/// Seconds an operation waits.
const DEADLINE: u64 = 2;
const ERRNOS: [(&str, i32); 4] = [
    ("EACCES", libc::EACCES),
    ("EKEYREVOKED", libc::EKEYREVOKED),
    ("ENOKEY", libc::ENOKEY),
    ("ETIMEDOUT", libc::ETIMEDOUT),
];

/// What a cell says: whether it works at first, and how it fails in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    works_first: bool,
    errno: Option<i32>,
}

fn cell(text: &str) -> Cell {
    let named = ERRNOS.iter().find(|(name, _)| text.ends_with(name));
    let works_first = text.starts_with("works");
    assert!(works_first || named.is_some(), "{text:?} says nothing");
    Cell {
        works_first,
        errno: named.map(|(_, errno)| *errno),
    }
}

/// The row for a state: open, cached, not in memory, new.
fn documented(state: &str) -> [Cell; 4] {
    let rows = include_str!("../../docs/KMS.md").lines();
    let mut rows = rows.filter_map(|row| row.strip_prefix(&format!("| {state} | ")));
    let row = rows.next().expect("a row of the table");
    assert_eq!(rows.next(), None, "{state} is there once");
    let cells = row.strip_suffix(" |").unwrap().split(" | ").map(cell);
    cells.collect::<Vec<_>>().try_into().expect("four cells")
}

fn outcome(result: io::Result<()>) -> Option<i32> {
    result
        .err()
        .map(|error| error.raw_os_error().expect("an errno"))
}

fn open_and_read(mount: &Mount, name: &str) -> io::Result<()> {
    read_block(&File::open(mount.join(name))?, 0)
}

fn a_state(state: &str, begin: impl Fn(&Server), end: impl Fn(&Server)) {
    needs_mounts!();
    let row = documented(state);
    let server = Server::start();
    let mount = kms_mount(&server, &["--kms-deadline", &DEADLINE.to_string()]);
    // Apart, so that none is taken for the next of another, and slowly, so that
    // no key is made ahead.
    for name in ["open", "cached", "cold"] {
        fs::create_dir(mount.join(name)).unwrap();
        write_synced(&mount.join(name).join("f"), &block(0));
        std::thread::sleep(Duration::from_millis(700));
    }
    kmsfs_ok(&mount, &["keys", "drop"]);
    let open = open_both(&mount.join("open/f")).unwrap();
    read_block(&open, 0).unwrap();
    open_and_read(&mount, "cached/f").unwrap();
    let new = || File::create(mount.join("new")).map(drop);
    begin(&server);
    let first = [
        outcome(read_block(&open, 0)),
        outcome(open_and_read(&mount, "cached/f")),
        outcome(open_and_read(&mount, "cold/f")),
        outcome(new()),
    ];
    for ((cell, first), what) in row.iter().zip(first).zip(["open", "cached", "cold", "new"]) {
        let wanted = if cell.works_first { None } else { cell.errno };
        assert_eq!(first, wanted, "{state}, {what}, at first");
    }
    let over = Instant::now() + Duration::from_secs(TTL + DEADLINE + 2);
    let check = |what: &str, cell: Cell, outcome: &dyn Fn() -> Option<i32>| loop {
        let got = outcome();
        if got == cell.errno && Instant::now() > over {
            return;
        }
        assert!(
            got == cell.errno || cell.works_first && got.is_none() && Instant::now() < over,
            "{state}, {what}: {got:?} instead of {:?}",
            cell.errno
        );
        std::thread::sleep(Duration::from_millis(100));
    };
    check("open", row[0], &|| outcome(read_block(&open, 0)));
    check("open", row[0], &|| outcome(write_block(&open, 1)));
    check("cached", row[1], &|| {
        outcome(open_and_read(&mount, "cached/f"))
    });
    check("cold", row[2], &|| outcome(open_and_read(&mount, "cold/f")));
    check("new", row[3], &|| outcome(new()));
    end(&server);
    until_it_works(Duration::from_secs(12), || {
        read_block(&open, 0)?;
        write_block(&open, 1)?;
        open_and_read(&mount, "cached/f")?;
        open_and_read(&mount, "cold/f")?;
        new()
    });
}

fn key_state(state: State) -> impl Fn(&Server) {
    move |server| server.change(|key| key.state = state)
}

fn conditions(conditions: Conditions) -> impl Fn(&Server) {
    move |server| server.set_conditions(conditions)
}

#[test]
fn healthy() {
    a_state("healthy", |_| (), |_| ());
}

#[test]
fn throttled() {
    let none = Conditions {
        quota: Some(0),
        ..Conditions::default()
    };
    a_state(
        "throttled",
        conditions(none),
        conditions(Conditions::default()),
    );
}

#[test]
fn unreachable() {
    let stopped = Conditions {
        stopped: true,
        ..Conditions::default()
    };
    a_state(
        "unreachable",
        conditions(stopped),
        conditions(Conditions::default()),
    );
}

#[test]
fn denied() {
    let deny = |denied: bool| move |server: &Server| server.change(|key| key.denied = denied);
    a_state("denied", deny(true), deny(false));
}

#[test]
fn disabled() {
    a_state(
        "disabled",
        key_state(State::Disabled),
        key_state(State::Enabled),
    );
}

#[test]
fn deleted() {
    let taken = std::sync::Mutex::new(None);
    a_state(
        "deleted",
        |server| *taken.lock().unwrap() = server.world().keys.remove(KEY),
        |server| {
            let key = taken.lock().unwrap().take().unwrap();
            server.world().keys.insert(KEY.into(), key);
        },
    );
}

/// A grace is for a key that is in memory, of an open file or not, and for
/// silence, not for refusals.
#[test]
fn a_grace_is_for_outages() {
    needs_mounts!();
    let server = Server::start();
    let arguments = ["--kms-deadline", "2", "--outage-grace", "600"];
    let mount = kms_mount(&server, &arguments);
    write_synced(&mount.join("cached"), &block(0));
    server.set_conditions(Conditions {
        stopped: true,
        ..Conditions::default()
    });
    let end = Instant::now() + Duration::from_secs(TTL + 4);
    while Instant::now() < end {
        open_and_read(&mount, "cached").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    server.set_conditions(Conditions::default());
    server.change(|key| key.state = State::Disabled);
    let failed = until_it_fails(NOTICED + Duration::from_secs(5), || {
        open_and_read(&mount, "cached")
    });
    assert_eq!(failed, libc::EKEYREVOKED);
}
