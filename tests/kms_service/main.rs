//! A mount whose keys are at a key management service: how many calls it makes,
//! how fast it is in spite of them, and what it does when there is no answer.

#[path = "../common/mod.rs"]
mod common;
#[path = "../kms_servers/mod.rs"]
mod kms_servers;

mod calls;
mod outage;
mod speed;
mod world;
