//! A key service for benchmarks: it protects nothing, and answers after a set time.
//!
//!     slow_kms MILLISECONDS     a plugin as in docs/PLUGIN_PROTOCOL.md
//!
//! Every answer comes `MILLISECONDS` after its request, however many there are at once,
//! and costs next to nothing of the processors: what is measured is kmsfs. A real service
//! is on another machine.

use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let latency = std::env::args().nth(1).ok_or("MILLISECONDS?")?;
    let latency = Duration::from_millis(latency.parse()?);
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            // The other end is there for as long as the process.
            let _ = sender.send((Instant::now() + latency, line));
        }
    });
    // They are due in the order in which they came.
    let mut out = std::io::stdout().lock();
    while let Ok((due, line)) = requests.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        writeln!(out, "{}", answer(&serde_json::from_str(&line)?)?)?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &Value) -> Result<Value> {
    let refusal = |class| json!({"class": class, "detail": request["op"]});
    let bytes = |field: &str| -> Result<Vec<u8>> {
        let text = request[field].as_str().ok_or("text is missing")?;
        Ok(BASE64.decode(text.as_bytes())?)
    };
    let done = match request["op"].as_str() {
        Some("hello") => Ok(json!({"protocol": 1, "name": "slow"})),
        Some("describe") => Ok(json!({"facts": {"name": "slow"}})),
        Some("generate") => {
            let mut key = vec![0; request["length"].as_u64().ok_or("no length")? as usize];
            aws_lc_rs::rand::fill(&mut key)?;
            let wrapped = [&mark(request)[..], &key].concat();
            Ok(json!({"plaintext": BASE64.encode(&key), "wrapped": BASE64.encode(&wrapped)}))
        }
        Some("wrap") => {
            let wrapped = [&mark(request)[..], &bytes("plaintext")?].concat();
            Ok(json!({"wrapped": BASE64.encode(&wrapped)}))
        }
        Some("unwrap") => match bytes("wrapped")?.strip_prefix(&mark(request)) {
            Some(key) => Ok(json!({"plaintext": BASE64.encode(key)})),
            None => Err(refusal("rejected")),
        },
        _ => Err(refusal("unsupported")),
    };
    Ok(match done {
        Ok(fields) => json!({"id": request["id"], "ok": fields}),
        Err(error) => json!({"id": request["id"], "error": error}),
    })
}

/// Stands for the binding to the context.
fn mark(request: &Value) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    request["context"].to_string().hash(&mut hasher);
    hasher.finish().to_le_bytes()
}
