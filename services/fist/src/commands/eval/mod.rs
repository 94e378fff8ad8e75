//! `fist eval`: plays recorded cases to a model, and scores what it finds.
//!
//! Invariants:
//! - All that is wrong with any case is told before the first one runs: a run may cost money.
//! - Cases run one after the other, in the order of their files' names.

mod record;
mod report;

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use agent_runner::evaluation::{
    Asked, CaseReport, Evaluator, Ready,
    case::{self, Problem},
};
use service::config::{Config, Secrets, process_env};

use super::Outcome;
use crate::{
    args::{Eval, EvalCommand, ReportFormat},
    client::Client,
    failure::{Code, Failure},
    show::{self, Style},
};

/// Cases of one run.
const CASES_MAX: usize = 1000;
/// Endings of cases in a directory.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
const PROVIDERS: [&str; 3] = ["anthropic", "openai", "scripted"];

/// Does it.
pub async fn run(client: impl FnOnce() -> Result<Client, Failure>, asked: &Eval) -> Outcome {
    if let Some(EvalCommand::Record(asked)) = &asked.command {
        return record::run(&client()?, asked).await;
    }
    if let Some(provider) = &asked.provider
        && !PROVIDERS.contains(&provider.as_str())
    {
        return Err(Failure::misuse(format!(
            "--provider {provider}: use {}",
            PROVIDERS.join(", ")
        )));
    }
    let config = Config::load(asked.config.as_deref(), process_env())?;
    let secrets = Secrets::from_env(&config.llm)?;
    let model = Asked {
        provider: asked.provider.clone(),
        model: asked.model.clone(),
        endpoint: asked.endpoint.clone(),
    };
    let evaluator = Evaluator::new(config, secrets, model).map_err(Failure::misuse)?;
    let cases = ready(&evaluator, &asked.paths)?;
    let output = asked.output.as_deref().map(create).transpose()?;
    let style = match output {
        Some(_) => Style::default(),
        None => Style::stdout(),
    };
    let reports = evaluate(&evaluator, &cases).await?;
    let text = match asked.format {
        ReportFormat::Table => report::table(&reports, style),
        ReportFormat::Json => report::json(&reports)?,
        ReportFormat::Junit => report::junit(&reports),
    };
    match (output, asked.output.as_deref()) {
        (Some(mut file), Some(path)) => file
            .write_all(text.as_bytes())
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?,
        _ => {
            show::data(&text);
        }
    }
    match reports.iter().all(|report| report.passed) {
        true => Ok(Code::Succeeded),
        false => Ok(Code::Failed),
    }
}

async fn evaluate(evaluator: &Evaluator, cases: &[Ready]) -> Result<Vec<CaseReport>, Failure> {
    let mut reports = Vec::with_capacity(cases.len());
    for (at, case) in cases.iter().enumerate() {
        if Style::stderr().terminal {
            show::aside(&format!("[{}/{}] {}", at + 1, cases.len(), case.name()));
        }
        let report = evaluator.run(case).await;
        reports.push(report.map_err(|reason| Failure::failed(format!("{}: {reason}", case.name())))?);
    }
    Ok(reports)
}

/// Every case, ready to run; or everything that is wrong with any.
fn ready(evaluator: &Evaluator, paths: &[PathBuf]) -> Result<Vec<Ready>, Failure> {
    let mut cases = Vec::new();
    let mut problems: Vec<Problem> = Vec::new();
    for path in found(paths)? {
        let read = case::load(&path).and_then(|case| evaluator.ready(case));
        match read {
            Ok(case) => cases.push(case),
            Err(wrong) => problems.extend(wrong),
        }
    }
    match problems.is_empty() {
        true => Ok(cases),
        false => Err(Failure::misuse(told(&problems))),
    }
}

/// The problems, a line each; one that every case has, such as a model without a key, once.
fn told(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (at, problem) in problems.iter().enumerate() {
        let is_same = |other: &&Problem| (&other.field, &other.message) == (&problem.field, &problem.message);
        if problems[..at].iter().any(|other| is_same(&other)) {
            continue;
        }
        let others = problems[at + 1..].iter().filter(is_same).count();
        let more = match others {
            0 => String::new(),
            1 => " (and of 1 more case)".to_owned(),
            others => format!(" (and of {others} more cases)"),
        };
        lines.push(format!("{problem}{more}"));
    }
    lines.join("\n")
}

/// The files of all cases, each once.
fn found(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in paths {
        let more = match path.is_dir() {
            true => of_directory(path)?,
            false => vec![path.clone()],
        };
        for file in more {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        if files.len() > CASES_MAX {
            return Err(Failure::misuse(format!(
                "there are more than {CASES_MAX} cases: evaluate them in several runs"
            )));
        }
    }
    Ok(files)
}

fn of_directory(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot =
        |error: std::io::Error| Failure::misuse(format!("cannot read {}: {error}", directory.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_file() && extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Failure::misuse(format!(
            "{} has no case: those are its files that end in .yaml, .yml or .json",
            directory.display()
        )));
    }
    files.sort();
    Ok(files)
}

/// Before the run, so that its result is not lost on a path that cannot be written.
fn create(path: &Path) -> Result<File, Failure> {
    File::create(path)
        .map_err(|error| Failure::misuse(format!("--output {}: cannot be written: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_all_cases_is_told_once() {
        let problem = |file: &str, message: &str| Problem {
            file: file.to_owned(),
            field: "goal".to_owned(),
            message: message.to_owned(),
        };
        assert_eq!(
            told(&[
                problem("a", "x"),
                problem("b", "y"),
                problem("c", "x"),
                problem("d", "x")
            ]),
            "a: goal: x (and of 2 more cases)\nb: goal: y"
        );
    }
}
