//! `kmsfs key check`.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::passphrase::PassphraseArguments;
use crate::cli::{Failure, print};
use crate::keys::check::{self, Report};
use crate::keys::open_provider;

/// Test whether a key can do all that a volume needs
#[derive(Args)]
#[command(after_help = "examples:
  kmsfs key check local:work
  kmsfs key check alibabakms://kms.cn-hangzhou.aliyuncs.com/key-hzz65f1234example

It makes a data key, unwraps it again, and sees that it is refused for another
file. What a volume with several keys or a later rewrap needs is tried as well.")]
pub(super) struct Arguments {
    /// The key's uri
    uri: String,
    #[command(flatten)]
    passphrase: PassphraseArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let provider = open_provider(&arguments.uri, &arguments.passphrase.source())?;
    let report = check::check(&*provider);
    print(&match arguments.json {
        true => format!("{:#}\n", to_json(provider.uri(), &report)),
        false => to_text(provider.uri(), &report),
    })?;
    match report.failure() {
        None => Ok(()),
        Some((error, advice)) => {
            let mut failure = Failure::from(error.clone());
            failure.hint = advice.map(str::to_owned).or(failure.hint);
            Err(failure)
        }
    }
}

fn to_text(uri: &str, report: &Report) -> String {
    let mut text = format!("key  {uri}\n");
    match &report.description {
        Ok(facts) => {
            for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = writeln!(text, "     {name}: {value}");
            }
        }
        Err(error) => {
            let _ = writeln!(text, "     not described: {error}");
        }
    }
    for step in &report.steps {
        let word = match (&step.result, step.needed) {
            (Ok(()), _) => "ok  ",
            (Err(_), true) => "FAIL",
            (Err(_), false) => "no  ",
        };
        let _ = writeln!(text, "{word} {}", step.what);
        if let (Err(error), false) = (&step.result, step.needed) {
            let _ = writeln!(text, "     {error}");
            if let Some(advice) = &step.advice {
                let _ = writeln!(text, "     {advice}");
            }
        }
    }
    text
}

fn to_json(uri: &str, report: &Report) -> Value {
    let description: Option<serde_json::Map<_, _>> =
        report.description.as_ref().ok().map(|facts| {
            let facts = facts.iter();
            let pair = |(name, value): &(&str, String)| ((*name).to_owned(), json!(value));
            facts.map(pair).collect()
        });
    let steps = report.steps.iter().map(|step| {
        json!({
            "what": step.what,
            "needed": step.needed,
            "ok": step.result.is_ok(),
            "error": step.result.as_ref().err().map(ToString::to_string),
            "advice": step.advice,
        })
    });
    json!({
        "uri": uri,
        "usable": report.failure().is_none(),
        "description": description,
        "steps": steps.collect::<Vec<_>>(),
    })
}
