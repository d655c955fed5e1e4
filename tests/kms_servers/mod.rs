//! Servers that stand in for key management services: written from their
//! documentation and without the code that is tested against them.
#![allow(unreachable_pub)]

pub mod alibaba;
pub mod http;
