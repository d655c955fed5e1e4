//! Servers that stand in for key management services: written from their
//! documentation and without the code that is tested against them.
// Each test has use for some of this.
#![allow(dead_code, unused_imports, unreachable_pub)]

pub mod alibaba;
pub mod azure;
pub mod gcp;
pub mod http;
pub mod tokens;
pub mod trouble;
