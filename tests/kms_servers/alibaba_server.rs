//! The test server of Alibaba Cloud KMS as a program: prints where it listens,
//! as JSON on one line, and serves until its standard input ends.

#[path = "mod.rs"]
mod kms_servers;

use std::io::Read;

use kms_servers::alibaba::{ACCESS_KEY, ALIAS, FIXTURES, KEY, Server};

fn main() {
    let server = Server::start();
    let place = serde_json::json!({
        "http": server.plain.to_string(),
        "https": format!("localhost:{}", server.encrypted.port()),
        "key": KEY,
        "alias": ALIAS,
        "access_key_id": ACCESS_KEY.0,
        "access_key_secret": ACCESS_KEY.1,
        "fixtures": FIXTURES,
    });
    println!("{place}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
