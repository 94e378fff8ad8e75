//! `fist crd`: the Kubernetes definition of workflows.

use super::Outcome;
use crate::{
    failure::{Code, Failure},
    show,
};

/// The definition as a file has it.
fn text() -> Result<String, Failure> {
    let yaml = serde_saphyr::to_string(&engine::manifest::crd())
        .map_err(|error| Failure::failed(format!("the definition cannot be written: {error}")))?;
    Ok(format!(
        "# Made of the types that read a manifest; do not edit. `make generate` writes it.\n{yaml}"
    ))
}

/// Does it.
pub fn run() -> Outcome {
    show::line(text()?.trim_end());
    Ok(Code::Succeeded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_file_in_the_repository_is_what_is_printed() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../deploy/crds/workflows.punching-fist.io.yaml");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            file == text().unwrap(),
            "deploy/crds is out of date: run `make generate`"
        );
    }
}
