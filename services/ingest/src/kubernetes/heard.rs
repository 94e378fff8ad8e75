//! What the watch has said last of each object: so that what is older is not worked on any more, and what a list does
//! not hold is known to be gone.
//!
//! Invariant: an object that is gone takes no room.

use std::collections::HashMap;

use kube::api::DynamicObject;

/// Namespace and name.
type Key = (String, String);

/// One state of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    key: Key,
    uid: String,
    resource_version: String,
}

impl Version {
    /// The object's; `None` for one that lacks what every API server gives.
    pub fn of(object: &DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        Some(Self {
            key: (metadata.namespace.clone()?, metadata.name.clone()?),
            uid: metadata.uid.clone()?,
            resource_version: metadata.resource_version.clone()?,
        })
    }
}

/// The newest state of every object that is there.
#[derive(Debug, Default)]
pub struct Heard(HashMap<Key, Version>);

impl Heard {
    /// It is there, like this.
    pub fn there(&mut self, version: Version) {
        self.0.insert(version.key.clone(), version);
    }

    /// It is gone.
    pub fn gone(&mut self, version: &Version) {
        self.0.remove(&version.key);
    }

    /// A list of the objects of `scope` (all, where it is none) begins: only what it holds is there.
    pub fn listing(&mut self, scope: Option<&str>) {
        match scope {
            None => self.0.clear(),
            Some(scope) => self.0.retain(|(namespace, _), _| namespace != scope),
        }
    }

    /// Whether nothing newer was heard of this object.
    pub fn is_latest(&self, version: &Version) -> bool {
        self.0.get(&version.key) == Some(version)
    }

    /// Whether this very object is there.
    pub fn has(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        self.0.get(&key).is_some_and(|version| version.uid == uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(namespace: &str, name: &str, uid: &str, resource_version: &str) -> Version {
        Version {
            key: (namespace.into(), name.into()),
            uid: uid.into(),
            resource_version: resource_version.into(),
        }
    }

    #[test]
    fn only_the_newest_state_is_worked_on() {
        let mut heard = Heard::default();
        let (first, second) = (version("a", "w", "1", "10"), version("a", "w", "1", "11"));
        heard.there(first.clone());
        assert!(heard.is_latest(&first));
        heard.there(second.clone());
        assert!(!heard.is_latest(&first) && heard.is_latest(&second));
        heard.gone(&second);
        assert!(!heard.is_latest(&second) && !heard.has("a", "w", "1"));
        assert!(heard.0.is_empty(), "what is gone takes no room");
    }

    #[test]
    fn what_a_new_list_does_not_hold_is_gone() {
        let mut heard = Heard::default();
        for (namespace, name) in [("a", "kept"), ("a", "lost"), ("b", "other")] {
            heard.there(version(namespace, name, name, "1"));
        }
        heard.listing(Some("a"));
        heard.there(version("a", "kept", "kept", "1"));
        assert!(heard.has("a", "kept", "kept") && heard.has("b", "other", "other"));
        assert!(
            !heard.has("a", "lost", "lost"),
            "deleted while the watch was broken"
        );
        heard.listing(None);
        assert!(!heard.has("b", "other", "other"));
    }
}
