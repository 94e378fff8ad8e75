#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn the_defaults_are_valid() {
    Config::default();
}
