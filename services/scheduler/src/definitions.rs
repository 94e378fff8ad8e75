//! Definitions compiled once, shared by all executions of the same spec.
//!
//! Invariant: bounded; a definition that was dropped is compiled again when it is next needed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use engine::Definition;
use protocol::Start;

/// Definitions kept compiled. An operator has tens; each takes some tens of kilobytes.
const DEFINITIONS_MAX: usize = 512;

type Compiled = Result<Arc<Definition>, String>;

/// The compiled definitions, by the JSON of their spec.
#[derive(Debug, Default)]
pub(crate) struct Definitions(Mutex<HashMap<String, Compiled>>);

impl Definitions {
    /// The compiled definition of a start fact, or why there is none.
    pub(crate) fn of(&self, start: &Start) -> Compiled {
        let key = start.spec.as_str();
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            return known.clone();
        }
        let compiled = serde_json::from_str(key)
            .map_err(|error| format!("its spec cannot be read: {error}"))
            .and_then(|spec| Definition::compile(spec).map(Arc::new));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= DEFINITIONS_MAX {
            known.clear();
        }
        known.insert(key.to_owned(), compiled.clone());
        compiled
    }
}
