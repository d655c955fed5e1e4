//! Servers that stand in for key management services: written from their
//! documentation and without the code that is tested against them.
#![allow(unreachable_pub)]

pub mod alibaba;
// Each test has use for one of these.
#[allow(dead_code, unused_imports)]
pub mod azure;
#[allow(dead_code, unused_imports)]
pub mod gcp;
pub mod http;
#[allow(dead_code)]
pub mod tokens;
#[allow(dead_code)]
pub mod trouble;
