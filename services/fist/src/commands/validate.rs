//! `fist validate`: what the server would say of a manifest, without a server.

use engine::admit::{Policy, admit_all};
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
    let policy = policy(&config);
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
fn policy(config: &Config) -> Policy {
    Policy {
        sources: config.sources.keys().cloned().collect(),
        model_aliases: config.llm.model_aliases.clone(),
        ..Policy::default()
    }
}
