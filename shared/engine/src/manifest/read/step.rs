//! Reads one step: what all have, and what its type has.

use std::collections::BTreeSet;

use protocol::ids::StepName;

use super::runtime::{check_variables, image, llm_config};
use crate::admit::Policy;
use crate::manifest::located::{Node, Shape};
use crate::manifest::object::{Object, Sink, text_of};
use crate::manifest::types::{
    AgentStep, CliStep, ConditionalStep, FixMode, OnFalse, OnTimeout, RUN_AS_USER_MAX, Resources,
    STEP_TIMEOUT_DEFAULT_MS, STEP_TIMEOUT_MINUTES_MAX, STEP_TIMEOUT_SECONDS_MAX, StepKind, StepType, Tool,
};
use crate::nearest::did_you_mean;
use crate::program::StepDraft;

pub(super) fn step(sink: &Sink, index: usize, node: &Node, policy: &Policy) -> StepDraft {
    let path = format!("spec.steps[{index}]");
    let mut draft = StepDraft {
        index,
        name: None,
        timeout_ms: STEP_TIMEOUT_DEFAULT_MS,
        is_timeout_in_seconds: false,
        kind: None,
    };
    let Some(mut object) = Object::new(sink, &path, node) else {
        return draft;
    };
    draft.name = object.text("name");
    if object.take("name").is_none() {
        object.missing("name", "each step has a name of its own");
    }
    if let Some(Err(error)) = draft.name.as_deref().map(StepName::new) {
        sink.error(&object.path_of("name"), error.to_string());
        draft.name = None;
    }
    let types = [
        ("cli", StepType::Cli),
        ("agent", StepType::Agent),
        ("conditional", StepType::Conditional),
    ];
    let step_type = object.choice("type", &types);
    if object.take("type").is_none() {
        object.missing("type", "it may be: cli, agent, conditional");
    }
    (draft.timeout_ms, draft.is_timeout_in_seconds) = timeout(&mut object);
    draft.kind = match step_type {
        Some(StepType::Cli) => cli(&mut object).map(StepKind::Cli),
        Some(StepType::Agent) => agent(&mut object, policy).map(StepKind::Agent),
        Some(StepType::Conditional) => conditional(&mut object).map(StepKind::Conditional),
        None => {
            // Of an unknown type nothing is known but that these are fields of some step.
            object.ignore(&CLI_FIELDS);
            object.ignore(&AGENT_FIELDS);
            object.ignore(&CONDITIONAL_FIELDS);
            None
        }
    };
    object.finish(&|name| {
        let this = step_type?;
        let owner = [
            (StepType::Cli, &CLI_FIELDS[..]),
            (StepType::Agent, &AGENT_FIELDS[..]),
            (StepType::Conditional, &CONDITIONAL_FIELDS[..]),
        ]
        .into_iter()
        .find(|(_, fields)| fields.contains(&name));
        match (owner, name) {
            (Some((owner, _)), _) => Some(format!(
                "\"{name}\" is a field of {owner} steps; this step's type is {this}"
            )),
            (None, "timeout") => {
                Some("unknown field; did you mean \"timeout_minutes\" or \"timeout_seconds\"?".to_owned())
            }
            (None, "args" | "script" | "run") if this == StepType::Cli => {
                Some("unknown field; a cli step is one `command`, a line for the shell".to_owned())
            }
            (None, "prompt") if this == StepType::Agent => {
                Some("unknown field; did you mean \"goal\"?".to_owned())
            }
            (None, "if" | "when" | "expression") if this == StepType::Conditional => {
                Some("unknown field; did you mean \"condition\"?".to_owned())
            }
            (None, _) => None,
        }
    });
    draft
}

/// Fields that only a cli step has; below, those of the other types.
pub(in crate::manifest) const CLI_FIELDS: [&str; 7] = [
    "command",
    "image",
    "env",
    "resources",
    "run_as_user",
    "fix",
    "mode",
];
pub(in crate::manifest) const AGENT_FIELDS: [&str; 4] = ["goal", "tools", "llm_config", "on_timeout"];
pub(in crate::manifest) const CONDITIONAL_FIELDS: [&str; 2] = ["condition", "on_false"];

/// The timeout in milliseconds, and whether it was given in seconds.
fn timeout(object: &mut Object) -> (u64, bool) {
    let in_seconds = |minutes: f64| {
        let seconds = minutes * 60.0;
        if seconds >= 1.0 && seconds.fract() == 0.0 {
            format!("; write timeout_seconds: {seconds}")
        } else {
            String::new()
        }
    };
    let has_both = object.take("timeout_minutes").is_some() && object.take("timeout_seconds").is_some();
    let minutes = object.whole_number("timeout_minutes", 1..=STEP_TIMEOUT_MINUTES_MAX, &in_seconds);
    let seconds = object.whole_number("timeout_seconds", 1..=STEP_TIMEOUT_SECONDS_MAX, &|_| {
        String::new()
    });
    if has_both {
        let path = object.path_of("timeout_seconds");
        object
            .sink
            .error(&path, "stands beside timeout_minutes; keep one of them");
    }
    match (minutes, seconds) {
        (Some(minutes), _) => (minutes * 60_000, false),
        (None, Some(seconds)) => (seconds * 1000, true),
        (None, None) => (STEP_TIMEOUT_DEFAULT_MS, false),
    }
}

fn cli(object: &mut Object) -> Option<CliStep> {
    let command = object.needed_text("command", "it is the line that the shell runs");
    let image = image(object);
    let env = object.texts("env");
    check_variables(object, "env", &env);
    let resources = object.object("resources").map(resources);
    let run_as_user = run_as_user(object);
    let fix = object.boolean("fix").unwrap_or_default();
    let mode = object.choice("mode", &[("auto", FixMode::Auto), ("propose", FixMode::Propose)]);
    Some(CliStep {
        command: command?,
        image,
        env,
        resources,
        run_as_user,
        fix,
        mode,
    })
}

fn run_as_user(object: &mut Object) -> Option<u32> {
    let user = object.whole_number("run_as_user", 0..=RUN_AS_USER_MAX, &|_| String::new())?;
    if user == 0 {
        let path = object.path_of("run_as_user");
        object.sink.error(
            &path,
            "0 is root, as which no command runs; give a user from 1 to 2147483647, and an image that works for it",
        );
    }
    u32::try_from(user).ok().filter(|user| *user > 0)
}

fn resources(mut object: Object) -> Resources {
    let resources = Resources {
        requests: object.quantities("requests"),
        limits: object.quantities("limits"),
    };
    for (field, quantities) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        for (name, quantity) in quantities {
            if !is_quantity(quantity) {
                let message =
                    format!("\"{quantity}\" is not a quantity; write as in `cpu: 100m`, `memory: 64Mi`");
                object
                    .sink
                    .error(&format!("{}.{name}", object.path_of(field)), message);
            }
        }
    }
    object.finish(&|name| match name {
        "cpu" | "memory" => Some(format!(
            "unknown field; \"{name}\" belongs into requests or limits"
        )),
        _ => None,
    });
    resources
}

/// Kubernetes' quantity: a decimal number and a suffix.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 15] = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi",
    ];
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - digits.len()];
    let is_number = number.starts_with(|c: char| c.is_ascii_digit()) && number.matches('.').count() <= 1;
    is_number && (SUFFIXES.contains(&digits) || digits == "Ei")
}

fn agent(object: &mut Object, policy: &Policy) -> Option<AgentStep> {
    let goal = object.needed_text("goal", "it says what the agent is to find out");
    let tools = tools(object);
    let llm_config = object
        .object("llm_config")
        .map(|object| llm_config(object, policy));
    let on_timeout = object.choice(
        "on_timeout",
        &[("partial", OnTimeout::Partial), ("fail", OnTimeout::Fail)],
    );
    Some(AgentStep {
        goal: goal?,
        tools,
        llm_config,
        on_timeout: on_timeout.unwrap_or_default(),
    })
}

fn tools(object: &mut Object) -> Vec<Tool> {
    let mut found: Vec<Tool> = Vec::new();
    let mut seen = BTreeSet::new();
    let path = object.path_of("tools");
    let Some(items) = object.list("tools") else {
        if object.take("tools").is_none() {
            object
                .sink
                .warning(&path, "has no tools: the agent can look at nothing but its goal");
        }
        return found;
    };
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some(name) = text_of(object.sink, &path, item) else {
            continue;
        };
        match tool(&name) {
            Ok(_) if !seen.insert(name.clone()) => {
                object.sink.warning(&path, format!("\"{name}\" is listed twice"));
            }
            Ok(tool) => found.push(tool),
            Err(message) => object.sink.error(&path, message),
        }
    }
    if items.is_empty() {
        object
            .sink
            .warning(&path, "is empty: the agent can look at nothing but its goal");
    }
    found
}

fn tool(name: &str) -> Result<Tool, String> {
    name.parse::<Tool>().map_err(|reason| {
        if name.starts_with("mcp:") {
            return reason;
        }
        let hint = match name.to_lowercase().as_str() {
            "prometheus" | "prom" | "metrics" => "did you mean \"promql\"?".to_owned(),
            "http" | "wget" | "fetch" => "did you mean \"curl\"?".to_owned(),
            "loki" | "logql" => "did you mean \"logs\"?".to_owned(),
            "kubernetes" | "k8s" => "did you mean \"kubectl\"?".to_owned(),
            "mcp" => "name its server too, as in mcp:tickets".to_owned(),
            _ => did_you_mean(name, "the tools are", &Tool::NAMES),
        };
        format!("unknown tool \"{name}\"; {hint}")
    })
}

fn conditional(object: &mut Object) -> Option<ConditionalStep> {
    let condition = match object.take("condition") {
        Some((path, node)) if matches!(node.shape, Shape::Bool(_)) => {
            let message = format!(
                "expected a comparison, found {}; write as in `alert.severity == critical`",
                node.described()
            );
            object.sink.error(&path, message);
            None
        }
        _ => object.needed_text("condition", "write as in `alert.severity == critical`"),
    };
    let choices = [
        ("skip_remaining", OnFalse::SkipRemaining),
        ("skip_next", OnFalse::SkipNext),
        ("fail", OnFalse::Fail),
        ("continue", OnFalse::Continue),
    ];
    let on_false = object.choice("on_false", &choices);
    Some(ConditionalStep {
        condition: condition?,
        on_false: on_false.unwrap_or_default(),
    })
}
