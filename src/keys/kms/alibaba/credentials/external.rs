//! Access keys that a command prints.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::Credentials;
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::secret_text::SecretText;

const LARGEST_OUTPUT: u64 = 64 * 1024;
const POLL: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
struct Output {
    access_key_id: String,
    access_key_secret: SecretText,
    sts_token: Option<SecretText>,
    expiration: Option<serde_json::Value>,
}

/// Runs `command` in a shell and reads the access key it prints.
pub(super) fn run(command: &str, deadline: Deadline) -> Result<Credentials, KeyError> {
    let failed = |problem: String| KeyError::Configuration {
        detail: format!("the command of the credential profile {problem}"),
        hint: None,
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let pipe = child.stdout.take().expect("it was asked for");
    let reader = std::thread::spawn(move || {
        let mut output = Zeroizing::new(Vec::with_capacity(LARGEST_OUTPUT as usize));
        let result = pipe.take(LARGEST_OUTPUT).read_to_end(&mut output);
        result.map(|_| output)
    });
    let Some(success) = wait(&mut child, deadline) else {
        return Err(failed("did not end in time".into()));
    };
    if !success {
        return Err(failed("failed".into()));
    }
    let output = reader.join().ok().and_then(Result::ok);
    let output = output.ok_or_else(|| failed("printed nothing readable".into()))?;
    parse(&output).ok_or_else(|| failed("printed no access key".into()))
}

/// Whether it succeeded; `None` if it had to be killed.
fn wait(child: &mut Child, deadline: Deadline) -> Option<bool> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status.success());
        }
        if deadline.left().is_zero() {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL);
    }
}

fn parse(output: &[u8]) -> Option<Credentials> {
    let output: Output = serde_json::from_slice(output).ok()?;
    let expires = match output.expiration {
        Some(serde_json::Value::Number(number)) => number.as_u64(),
        Some(serde_json::Value::String(text)) => crate::keys::kms::time::parse_iso8601(&text),
        _ => None,
    };
    Some(Credentials {
        id: output.access_key_id,
        secret: output.access_key_secret.into_inner(),
        token: output.sts_token.map(SecretText::into_inner),
        expires: expires.filter(|seconds| *seconds > 0),
    })
}
