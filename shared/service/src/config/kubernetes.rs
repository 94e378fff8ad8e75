//! `[kubernetes]`: how a service reaches the cluster.

use std::path::PathBuf;

use super::reader::Section;

/// The way to the Kubernetes API. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Kubernetes {
    pub kubeconfig: Option<PathBuf>,
}

impl Kubernetes {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            kubeconfig: section.path("kubeconfig"),
        }
    }
}
