//! How keys are shown, to people and to programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::keys::local::{Document, ListedKey, Protection, State, Status};

/// The word for a version's state.
pub(super) fn keyword(state: State) -> &'static str {
    match state {
        State::Enabled => "enabled",
        State::Disabled => "disabled",
    }
}

/// One key with its versions.
pub(super) fn show(key: &Document, as_json: bool) -> String {
    if as_json {
        return pretty(&to_json(key));
    }
    let mut text = format!("key         {}\nstate       {}", key.uri(), status(key));
    let protection = match &key.protection {
        Protection::Keyfile { file } => format!("key file {}", file.display()),
        Protection::Passphrase { cost, .. } => format!(
            "passphrase, argon2id with {} MiB, {} passes, {} lanes",
            cost.memory_kib / 1024,
            cost.iterations,
            cost.parallelism
        ),
    };
    let _ = write!(
        text,
        "\nprotection  {protection}\ncreated     {}\n",
        key.created
    );
    for version in &key.versions {
        let _ = writeln!(
            text,
            "version     {} {} {}",
            version.number,
            version.created,
            keyword(version.state)
        );
    }
    text
}

/// All keys, one a line.
pub(super) fn list(keys: &[ListedKey], as_json: bool) -> String {
    if as_json {
        let values = keys.iter().map(|(name, key)| match key {
            Ok(key) => to_json(key),
            Err(error) => json!({ "name": name, "error": error.to_string() }),
        });
        return pretty(&values.collect());
    }
    let width = keys.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let width = width.max("NAME".len());
    let mut text = format!(
        "{:width$}  {:22}  VERSIONS  {:10}  CREATED\n",
        "NAME", "STATE", "PROTECTION"
    );
    for (name, key) in keys {
        let _ = match key {
            Ok(key) => writeln!(
                text,
                "{name:width$}  {:22}  {:<8}  {:10}  {}",
                key.status().keyword(),
                key.versions.len(),
                key.protection.kind(),
                key.created
            ),
            Err(_) => writeln!(text, "{name:width$}  unreadable"),
        };
    }
    text
}

fn status(key: &Document) -> String {
    match key.status() {
        Status::ScheduledForDeletion(date) => format!("scheduled for deletion on {date}"),
        status => status.keyword().to_owned(),
    }
}

fn to_json(key: &Document) -> Value {
    let delete_after = match key.status() {
        Status::ScheduledForDeletion(date) => Some(date.to_string()),
        Status::Enabled | Status::Disabled => None,
    };
    let versions = key.versions.iter().map(|version| {
        json!({
            "number": version.number,
            "created": version.created,
            "state": keyword(version.state),
        })
    });
    json!({
        "uri": key.uri().to_string(),
        "name": key.name,
        "uuid": key.uuid,
        "state": key.status().keyword(),
        "delete_after": delete_after,
        "protection": key.protection.kind(),
        "created": key.created,
        "versions": versions.collect::<Vec<_>>(),
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
