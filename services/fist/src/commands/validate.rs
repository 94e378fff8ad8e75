//! `fist validate`: what the server would say of a manifest, without a server.

use engine::{
    admit::{Policy, admit_all},
    fixgate::Gate,
};
use service::config::{Config, process_env};

use super::Outcome;
use crate::{
    args::Validate,
    failure::{Code, Failure},
    manifests, show,
};

/// Does it.
pub fn run(asked: &Validate) -> Outcome {
    let config = Config::load(asked.config.as_deref(), process_env())?;
    let policy = policy(&config)?;
    let mut refused = Vec::new();
    for file in &asked.files {
        let source = manifests::read(file)?;
        for result in admit_all(&source.text, source.format, &policy) {
            let problems = match result {
                Ok(admitted) => {
                    let metadata = &admitted.workflow.metadata;
                    if !admitted.warnings.is_empty() {
                        show::note(&engine::listed(&admitted.warnings));
                    }
                    show::line(&format!("{}: workflow/{} is valid", source.name, metadata.name));
                    continue;
                }
                Err(problems) => engine::listed(&problems),
            };
            refused.push(if asked.files.len() > 1 {
                format!("{}:\n{problems}", source.name)
            } else {
                problems
            });
        }
    }
    if refused.is_empty() {
        Ok(Code::Succeeded)
    } else {
        Err(Failure::misuse(refused.join("\n")))
    }
}

/// What this configuration decides about manifests, as the server has it.
fn policy(config: &Config) -> Result<Policy, Failure> {
    let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
        .map_err(|error| Failure::misuse(format!("fix.verbs: {error}")))?;
    Ok(Policy {
        sources: config.sources.keys().cloned().collect(),
        model_aliases: config.llm.model_aliases.clone(),
        gate,
        ..Policy::default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use engine::{Format, admit};

    use super::*;

    #[test]
    fn a_constant_fix_is_checked_by_the_operators_own_verbs() {
        let manifest = "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {name: w}
spec:
  steps:
  - {name: s, type: cli, fix: true, command: kubectl scale deployment web --replicas=2}
";
        let warnings = |verbs: &str| {
            let variables = [("FIST_FIX_VERBS".to_owned(), verbs.to_owned())];
            let config = Config::parse(None, variables.into_iter()).unwrap();
            let admitted = admit(manifest, Format::Yaml, &policy(&config).unwrap()).unwrap();
            engine::listed(&admitted.warnings)
        };
        assert_eq!(warnings("scale"), "");
        assert!(warnings("cordon").contains("scale"), "{}", warnings("cordon"));
    }
}
