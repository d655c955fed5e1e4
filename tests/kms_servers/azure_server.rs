//! The test server of Azure Key Vault as a program: prints where it listens, as
//! JSON on one line, and serves until its standard input ends.

#[path = "mod.rs"]
mod kms_servers;

use std::io::Read;

use kms_servers::alibaba::FIXTURES;
use kms_servers::azure::{CLIENT, KEY, Kind, SECRET, Server, TENANT};

fn main() {
    let server = Server::start(Kind::Rsa);
    let place = serde_json::json!({
        "http": server.login.to_string(),
        "https": format!("localhost:{}", server.vault.port()),
        "key": KEY,
        "tenant": TENANT,
        "client": CLIENT,
        "secret": SECRET,
        "fixtures": FIXTURES,
    });
    println!("{place}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
