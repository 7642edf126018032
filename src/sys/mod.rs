//! System calls, one function each; the only place with unsafe code.

pub(crate) mod daemonize;
