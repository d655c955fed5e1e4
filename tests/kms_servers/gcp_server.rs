//! The test server of Google Cloud KMS as a program: prints where it listens, as
//! JSON on one line, and serves until its standard input ends.

#[path = "mod.rs"]
mod kms_servers;

use std::io::Read;

use kms_servers::gcp::{RESOURCE, Server};

fn main() {
    let server = Server::start();
    let place = serde_json::json!({
        "http": server.address.to_string(),
        "key": RESOURCE,
        "service_account": server.world().identity.service_account(),
        "authorized_user": server.world().identity.authorized_user(),
    });
    println!("{place}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
