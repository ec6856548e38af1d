//! What must hold for whatever peers send: each target reads bytes as one input, and panics where a promise is broken.

mod config;
mod frame;
mod input;
mod lexer;
mod postgres;
mod replies;
mod sasl;
mod sql;
mod startup;
mod tracker;

/// A target, by name.
pub type Target = (&'static str, fn(&[u8]));

/// Each target by name. The name is that of its directories in `fuzz/seeds` and `fuzz/cases`, too.
pub const ALL: [Target; 7] = [
    ("startup", startup::run),
    ("frame", frame::run),
    ("sasl", sasl::run),
    ("tracker", tracker::run),
    ("sql", sql::run),
    ("replies", replies::run),
    ("config", config::run),
];
