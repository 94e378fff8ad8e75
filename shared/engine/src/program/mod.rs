//! A workflow's steps with everything compiled that can be: the scheduler's hot path renders and
//! evaluates, and never parses.
//!
//! Invariants:
//! - One compiler for admission and for the scheduler, so that what was admitted compiles.
//! - A step refers only to steps before it.
//! - A command that is nothing but one expression runs text as code: only an agent's `fix_command`
//!   may stand so, and it is always gated.

mod references;

use std::collections::{BTreeSet, HashMap};

use crate::condition::Condition;
use crate::fixgate::{self, Gate};
use crate::manifest::{
    AgentStep, CliStep, ConditionalStep, FixMode, LlmConfig, OnFalse, Provider, Runtime, Spec, Step, StepKind,
};
use crate::problem::Problem;
use crate::template::{Kind, Template, TemplateError};
use references::Known;

/// A template may be so long before it is rendered.
pub const TEMPLATE_BYTES_MAX: usize = 64 * 1024;
/// And hold so many expressions and tags.
pub const TEMPLATE_EXPRESSIONS_MAX: usize = 1000;

/// A workflow's steps, compiled.
#[derive(Debug, Clone)]
pub struct Program {
    /// In the order in which they run.
    pub steps: Vec<ProgramStep>,
}

/// One step, compiled. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProgramStep {
    /// Its name, as written.
    pub name: String,
    /// Milliseconds from dispatch.
    pub timeout_ms: u64,
    /// What it does.
    pub work: Work,
}

/// What a step does, compiled.
#[derive(Debug, Clone)]
pub enum Work {
    /// Runs a command.
    Cli(CliWork),
    /// Lets an agent investigate.
    Agent {
        /// What it is to find out.
        goal: Template,
    },
    /// Decides about the steps that follow.
    Conditional {
        /// What is decided on.
        condition: Condition,
        /// What happens when it is not met.
        on_false: OnFalse,
    },
}

/// A command, compiled.
#[derive(Debug, Clone)]
pub struct CliWork {
    /// What is run. Rendered with escapes, unless it is [`Gated::Suggested`]: that is rendered plain.
    pub command: Template,
    /// Variables of this step's process, over the runtime's.
    pub env: Vec<(String, Template)>,
    /// Whether, and why, the rendered command must pass the fix gate.
    pub gate: Option<Gated>,
    /// Whether a gated command is run once it has passed; absent, the configuration decides.
    pub mode: Option<FixMode>,
}

/// Why a command must pass the fix gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gated {
    /// The author says `fix: true`.
    Declared,
    /// It is the `fix_command` of this agent step, and so needs that step's findings to be sound.
    Suggested {
        /// The agent step's name.
        by_step: String,
    },
}

impl Program {
    /// Compiles a workflow's steps.
    ///
    /// # Errors
    /// Every problem that admission would have found in templates, conditions and references; of an
    /// admitted spec there is none.
    pub fn compile(spec: &Spec) -> Result<Program, Vec<Problem>> {
        let drafts: Vec<StepDraft> = spec.steps.iter().enumerate().map(StepDraft::of_step).collect();
        let compiled = compile_drafts(&drafts, &spec.runtime, None);
        let errors: Vec<Problem> = compiled.problems.into_iter().filter(Problem::is_error).collect();
        match compiled.steps.into_iter().collect::<Option<Vec<_>>>() {
            Some(steps) if errors.is_empty() => Ok(Program { steps }),
            _ => Err(errors),
        }
    }

    /// The compiled step of this name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&ProgramStep> {
        self.steps.iter().find(|step| step.name == name)
    }
}

/// A step as far as it could be read. Admission compiles drafts, so that a mistake in one step does
/// not hide those in others.
pub(crate) struct StepDraft {
    pub index: usize,
    pub name: Option<String>,
    pub timeout_ms: u64,
    pub is_timeout_in_seconds: bool,
    pub kind: Option<StepKind>,
}

impl StepDraft {
    fn of_step((index, step): (usize, &Step)) -> StepDraft {
        StepDraft {
            index,
            name: Some(step.name.clone()),
            timeout_ms: step.timeout_ms,
            is_timeout_in_seconds: step.is_timeout_in_seconds,
            kind: Some(step.kind.clone()),
        }
    }

    pub(crate) fn path(&self) -> String {
        format!("spec.steps[{}]", self.index)
    }

    pub(crate) fn into_step(self) -> Option<Step> {
        Some(Step {
            name: self.name?,
            timeout_ms: self.timeout_ms,
            is_timeout_in_seconds: self.is_timeout_in_seconds,
            kind: self.kind?,
        })
    }
}

/// What came of compiling drafts. A line in a problem counts within the field's own text.
pub(crate) struct Compiled {
    pub steps: Vec<Option<ProgramStep>>,
    pub problems: Vec<Problem>,
    /// Whether anything reads `source` or `alert`.
    pub reads_input: bool,
}

/// `gate`, where there is one, is asked about fixes that hold no value.
pub(crate) fn compile_drafts(drafts: &[StepDraft], runtime: &Runtime, gate: Option<&Gate>) -> Compiled {
    let mut compiler = Compiler {
        drafts,
        runtime,
        gate,
        names: drafts.iter().filter_map(|draft| draft.name.as_deref()).collect(),
        known: Known::new(drafts, runtime),
        problems: Vec::new(),
        reads_input: false,
    };
    let steps = drafts.iter().map(|draft| compiler.step(draft)).collect();
    Compiled {
        steps,
        problems: compiler.problems,
        reads_input: compiler.reads_input,
    }
}

struct Compiler<'d> {
    drafts: &'d [StepDraft],
    runtime: &'d Runtime,
    gate: Option<&'d Gate>,
    names: Vec<&'d str>,
    known: Known<'d>,
    problems: Vec<Problem>,
    reads_input: bool,
}

impl Compiler<'_> {
    fn step(&mut self, draft: &StepDraft) -> Option<ProgramStep> {
        let work = match draft.kind.as_ref()? {
            StepKind::Cli(cli) => self.cli(draft, cli).map(Work::Cli),
            StepKind::Agent(agent) => self.agent(draft, agent),
            StepKind::Conditional(conditional) => self.conditional(draft, conditional),
        };
        Some(ProgramStep {
            name: draft.name.clone()?,
            timeout_ms: draft.timeout_ms,
            work: work?,
        })
    }

    /// Compiles one template and checks what it reads. `None` where that was an error.
    fn template(&mut self, draft: &StepDraft, field: &str, source: &str, kind: Kind) -> Option<Template> {
        self.template_with(draft, field, source, kind, &BTreeSet::new())
    }

    /// The same, for a command whose environment has `variables` that hold values.
    fn template_with(
        &mut self,
        draft: &StepDraft,
        field: &str,
        source: &str,
        kind: Kind,
        variables: &BTreeSet<String>,
    ) -> Option<Template> {
        let path = format!("{}.{field}", draft.path());
        if let Err(message) = check_size(source) {
            self.problems.push(Problem::error(path, message));
            return None;
        }
        let compiled = Template::compile_with(source, kind, &self.names, variables);
        let in_broken;
        let references = match &compiled {
            Ok(template) => template.references(),
            Err(_) => {
                in_broken = Template::references_in(source, kind, &self.names);
                &in_broken
            }
        };
        for reference in references.iter().filter(|reference| !reference.is_bound) {
            self.reads_input |= reads_input(&reference.path);
            // Of a step that is undeclared the template's own errors tell.
            if reference.step().is_some_and(|step| !self.names.contains(&step)) {
                continue;
            }
            let found = self
                .known
                .check(draft.index, &reference.path, &reference.to_string());
            self.problems.extend(found.into_iter().map(|problem| Problem {
                field: path.clone(),
                line: Some(reference.line),
                ..problem
            }));
        }
        let report = |errors: Vec<TemplateError>| {
            self.problems.extend(errors.into_iter().map(|error| Problem {
                line: Some(error.line),
                ..Problem::error(path.as_str(), error.message)
            }));
        };
        compiled.map_err(report).ok()
    }

    fn cli(&mut self, draft: &StepDraft, cli: &CliStep) -> Option<CliWork> {
        let path = format!("{}.command", draft.path());
        let env: Vec<(String, Template)> = cli
            .env
            .iter()
            .filter_map(|(name, value)| {
                let template = self.template(draft, &format!("env.{name}"), value, Kind::Text)?;
                Some((name.clone(), template))
            })
            .collect();
        let from_outside = env
            .iter()
            .filter(|(_, template)| !template.references().is_empty());
        let variables = from_outside.map(|(name, _)| name.clone()).collect();
        let command = self.template_with(draft, "command", &cli.command, Kind::Command, &variables);
        if let Some(line) = line_that_begins_with_a_dash(&cli.command) {
            let message =
                "a line that begins with `-` is a command of its own; end the line before it with ` \\`";
            self.problems.push(Problem {
                line: Some(line),
                ..Problem::warning(path.as_str(), message)
            });
        }
        let command = command?;
        let gate = self.gate(&path, &command, cli);
        if gate.is_none() && cli.mode.is_some() {
            let message = "says what becomes of a fix, and this command is none: it would be run without the gate; \
                           add `fix: true`, or remove `mode`";
            self.problems
                .push(Problem::error(format!("{}.mode", draft.path()), message));
        }
        if env.len() < cli.env.len() {
            return None;
        }
        Some(CliWork {
            command,
            env,
            gate,
            mode: cli.mode,
        })
    }

    fn gate(&mut self, path: &str, command: &Template, cli: &CliStep) -> Option<Gated> {
        let Some(sole) = command.sole_expression() else {
            // Without a value in it, what the gate's parser will see is known already.
            let is_constant = command.references().is_empty() && !cli.command.contains("{%");
            if cli.fix && is_constant {
                self.check_constant_fix(path, &cli.command);
            }
            return cli.fix.then_some(Gated::Declared);
        };
        let agent = match sole.path.as_slice() {
            [steps, step, output, key] if steps == "steps" && output == "output" && key == "fix_command" => {
                self.drafts.iter().find(|draft| draft.name.as_ref() == Some(step))
            }
            _ => None,
        };
        match agent.map(|draft| (&draft.kind, &draft.name)) {
            Some((Some(StepKind::Agent(agent)), Some(name))) => {
                let provider = effective(self.runtime, agent).provider;
                if provider == Some(Provider::Scripted) {
                    let message = format!(
                        "\"{name}\" is scripted, and what a script suggests is never run: this step will always fail"
                    );
                    self.problems.push(Problem::warning(path, message));
                }
                Some(Gated::Suggested {
                    by_step: name.clone(),
                })
            }
            // A step that could not be read was reported; it may well be an agent.
            Some((None, Some(name))) => Some(Gated::Suggested {
                by_step: name.clone(),
            }),
            _ => {
                let message = format!(
                    "a command that is nothing but `{{{{ {sole} }}}}` runs whatever that text says; only \
                     `{{{{ steps.<agent step>.output.fix_command }}}}` may, through the fix gate; write the command out, \
                     with values as its arguments"
                );
                self.problems.push(Problem::error(path, message));
                None
            }
        }
    }

    /// Without a value in it, what the gate will see is known already.
    fn check_constant_fix(&mut self, path: &str, command: &str) {
        if let Err(refusal) = fixgate::parse(command) {
            let message = format!("cannot pass the fix gate: {refusal}");
            self.problems.push(Problem::error(path, message));
        } else if let Some(Err(refusal)) = self.gate.map(|gate| gate.check_form(command)) {
            let message = format!("will not pass the fix gate as it is configured: {refusal}");
            self.problems.push(Problem::warning(path, message));
        }
    }

    fn agent(&mut self, draft: &StepDraft, agent: &AgentStep) -> Option<Work> {
        let llm = effective(self.runtime, agent);
        if llm.provider == Some(Provider::Scripted) && llm.model.is_none() {
            let path = format!("{}.llm_config.model", draft.path());
            let message = "is missing; for `scripted` it names the file of turns";
            self.problems.push(Problem::error(path, message));
        }
        self.template(draft, "goal", &agent.goal, Kind::Text)
            .map(|goal| Work::Agent { goal })
    }

    fn conditional(&mut self, draft: &StepDraft, conditional: &ConditionalStep) -> Option<Work> {
        let path = format!("{}.condition", draft.path());
        let condition = match Condition::parse(&conditional.condition) {
            Ok(condition) => condition,
            Err(error) => {
                self.problems.push(Problem::error(path, error.to_string()));
                return None;
            }
        };
        for reference in condition.references() {
            self.reads_input |= reads_input(reference.segments());
            let found = self
                .known
                .check(draft.index, reference.segments(), &reference.to_string());
            self.problems.extend(found.into_iter().map(|problem| Problem {
                field: path.clone(),
                ..problem
            }));
        }
        for warning in condition.warnings() {
            self.problems.push(Problem::warning(path.as_str(), warning));
        }
        self.check_what_follows(draft, &condition, conditional.on_false);
        Some(Work::Conditional {
            condition,
            on_false: conditional.on_false,
        })
    }

    fn check_what_follows(&mut self, draft: &StepDraft, condition: &Condition, on_false: OnFalse) {
        let Some(next) = self.drafts.get(draft.index + 1) else {
            if on_false == OnFalse::SkipNext {
                let message = "there is no next step that it could skip";
                self.problems
                    .push(Problem::warning(format!("{}.on_false", draft.path()), message));
            }
            return;
        };
        let Some(since) = condition.never_met_since(&|path| self.known.possible(path)) else {
            return;
        };
        let which = match on_false {
            OnFalse::SkipRemaining | OnFalse::Fail => "this step and those after it never run",
            OnFalse::SkipNext => "this step never runs",
            OnFalse::Continue => return,
        };
        let message = format!(
            "{which}: the condition `{}` of {} can never be met, since {since}",
            condition.source(),
            draft.path()
        );
        self.problems.push(Problem::warning(next.path(), message));
    }
}

/// The model configuration of an agent step: its own over the workflow's.
#[must_use]
pub fn effective(runtime: &Runtime, agent: &AgentStep) -> LlmConfig {
    let base = runtime.llm_config.clone().unwrap_or_default();
    agent
        .llm_config
        .as_ref()
        .map_or_else(|| base.clone(), |own| own.over(&base))
}

/// Compiling takes time in proportion to length and expressions together.
fn check_size(source: &str) -> Result<(), String> {
    if source.len() > TEMPLATE_BYTES_MAX {
        return Err(format!(
            "has {} bytes; a template may have {TEMPLATE_BYTES_MAX}",
            source.len()
        ));
    }
    let count = source.matches("{{").count() + source.matches("{%").count();
    if count > TEMPLATE_EXPRESSIONS_MAX {
        return Err(format!(
            "has {count} expressions; a template may have {TEMPLATE_EXPRESSIONS_MAX}"
        ));
    }
    Ok(())
}

fn reads_input(path: &[String]) -> bool {
    path.first()
        .is_some_and(|root| root == "source" || root == "alert")
}

/// The first line, from 1, that begins with `-` and does not go on from the line before. Heredocs
/// may hold any line.
fn line_that_begins_with_a_dash(command: &str) -> Option<u32> {
    if command.contains("<<") {
        return None;
    }
    let mut goes_on = false;
    for (number, line) in (1u32..).zip(command.lines()) {
        if !goes_on && line.trim_start().starts_with('-') {
            return Some(number);
        }
        goes_on = line.ends_with('\\');
    }
    None
}

/// Where each named step stands.
fn positions(drafts: &[StepDraft]) -> HashMap<&str, usize> {
    let mut found = HashMap::new();
    for draft in drafts {
        if let Some(name) = draft.name.as_deref() {
            found.entry(name).or_insert(draft.index);
        }
    }
    found
}
