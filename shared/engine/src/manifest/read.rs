//! Reads a located tree into the manifest's types, field by field.
//!
//! Invariants:
//! - Every problem is reported; a field that cannot be read is left out of the draft, and reading
//!   goes on.
//! - Only what one field or its neighbours decide is checked here; templates, conditions and what
//!   refers to another step are `program`'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::ids::{Namespace, SourceName, StepName, WorkflowName};

use super::located::{Node, Shape};
use super::object::{Object, Sink, text_of};
use super::types::{
    API_VERSION, AgentStep, CliStep, ConditionalStep, FixMode, KIND, LlmConfig, Metadata, OnFalse, OnTimeout,
    Provider, Resources, Runtime, STEP_TIMEOUT_DEFAULT_MS, STEP_TIMEOUT_MINUTES_MAX,
    STEP_TIMEOUT_SECONDS_MAX, StepKind, StepType, Tool, Trigger,
};
use crate::admit::Policy;
use crate::filters;
use crate::nearest::did_you_mean;
use crate::program::StepDraft;

/// So many steps may a workflow have.
pub const STEPS_MAX: usize = 1000;
/// Sources that need no configuration.
pub const BUILT_IN_SOURCES: [&str; 3] = ["alertmanager", "webhook", "nats"];

/// What could be read of a manifest.
pub(super) struct Draft {
    pub metadata: Option<Metadata>,
    pub trigger: Option<Trigger>,
    pub runtime: Runtime,
    pub steps: Vec<StepDraft>,
    pub suspend: bool,
}

pub(super) fn workflow(sink: &Sink, node: &Node, policy: &Policy) -> Option<Draft> {
    let mut top = Object::new(sink, "", node)?;
    api_version_and_kind(&mut top);
    // What the cluster adds to an object that it gives back.
    top.ignore(&["status"]);
    let metadata = match top.object("metadata") {
        Some(object) => metadata(object),
        None => {
            top.missing(
                "metadata",
                "it holds the workflow's name: `metadata: {name: my-workflow}`",
            );
            None
        }
    };
    let spec = top.object("spec");
    if spec.is_none() {
        top.missing("spec", "it holds the steps");
    }
    top.finish(&|name| match name {
        "name" | "namespace" | "annotations" | "labels" => {
            Some(format!("unknown field; \"{name}\" belongs into metadata"))
        }
        "steps" | "trigger" | "runtime" | "suspend" => {
            Some(format!("unknown field; \"{name}\" belongs into spec"))
        }
        _ => None,
    });
    let mut draft = Draft {
        metadata,
        trigger: None,
        runtime: Runtime::default(),
        steps: Vec::new(),
        suspend: false,
    };
    if let Some(spec) = spec {
        read_spec(spec, policy, &mut draft);
    }
    Some(draft)
}

fn api_version_and_kind(top: &mut Object) {
    match top.text("apiVersion") {
        Some(version) if version != API_VERSION => {
            let message = format!("unknown apiVersion \"{version}\"; write {API_VERSION}");
            top.sink.error("apiVersion", message);
        }
        None if top.take("apiVersion").is_none() => {
            top.missing("apiVersion", &format!("write `apiVersion: {API_VERSION}`"));
        }
        _ => {}
    }
    match top.text("kind") {
        Some(kind) if kind != KIND => {
            top.sink
                .error("kind", format!("unknown kind \"{kind}\"; write {KIND}"));
        }
        None if top.take("kind").is_none() => top.missing("kind", &format!("write `kind: {KIND}`")),
        _ => {}
    }
}

fn metadata(mut object: Object) -> Option<Metadata> {
    let name = object.text("name");
    let has_name = object.take("name").is_some();
    if !has_name {
        object.missing("name", "name the workflow, as in `name: pod-crash-investigation`");
    }
    if let Some(Err(error)) = name.as_deref().map(WorkflowName::new) {
        object.sink.error(&object.path_of("name"), error.to_string());
    }
    let namespace = object.text("namespace");
    if let Some(Err(error)) = namespace.as_deref().map(Namespace::new) {
        object.sink.error(&object.path_of("namespace"), error.to_string());
    }
    let labels = object.texts("labels");
    let annotations = object.texts("annotations");
    let uid = object.text("uid");
    object.ignore(&[
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
        "selfLink",
    ]);
    object.finish(&|_| None);
    Some(Metadata {
        // Where it is missing, that was reported, and the rest is still checked.
        name: name.unwrap_or_default(),
        namespace: namespace.unwrap_or_else(|| Namespace::default().to_string()),
        labels,
        annotations,
        uid,
    })
}

fn read_spec(mut spec: Object, policy: &Policy, draft: &mut Draft) {
    let sink = spec.sink;
    draft.trigger = spec.object("trigger").and_then(|object| trigger(object, policy));
    if let Some(object) = spec.object("runtime") {
        draft.runtime = runtime(object, policy);
    }
    draft.suspend = spec.boolean("suspend").unwrap_or_default();
    match spec.list("steps") {
        Some([]) => spec
            .sink
            .error("spec.steps", "is empty; a workflow needs at least one step"),
        Some(items) => {
            if items.len() > STEPS_MAX {
                let message = format!("has {} steps; a workflow may have {STEPS_MAX}", items.len());
                spec.sink.error("spec.steps", message);
            }
            draft.steps = items
                .iter()
                .take(STEPS_MAX)
                .enumerate()
                .map(|(index, node)| step(spec.sink, index, node, policy))
                .collect();
            check_names(spec.sink, &draft.steps);
        }
        None if spec.take("steps").is_none() => {
            spec.missing("steps", "a workflow needs at least one step");
        }
        None => {}
    }
    spec.finish(&|name| match name {
        "image" | "environment" | "env" | "llm_config" => {
            Some(format!("unknown field; \"{name}\" belongs into spec.runtime"))
        }
        "source" | "filters" => Some(format!("unknown field; \"{name}\" belongs into spec.trigger")),
        _ => None,
    });
    check_duration(&draft.steps, policy, sink);
}

fn check_names(sink: &Sink, steps: &[StepDraft]) {
    let mut first_at: HashMap<&str, usize> = HashMap::new();
    for step in steps {
        let Some(name) = step.name.as_deref() else {
            continue;
        };
        if let Some(first) = first_at.get(name) {
            let message = format!(
                "the name \"{name}\" is taken by spec.steps[{first}]; each step has a name of its own"
            );
            sink.error(&format!("{}.name", step.path()), message);
        } else {
            first_at.insert(name, step.index);
        }
    }
}

fn check_duration(steps: &[StepDraft], policy: &Policy, sink: &Sink) {
    let total_ms: u64 = steps.iter().map(|step| step.timeout_ms).sum();
    if total_ms > policy.execution_ms_max {
        let message = format!(
            "the steps' timeouts add up to {}; an execution may last {}; shorten them, or make two workflows of it",
            hours(total_ms),
            hours(policy.execution_ms_max)
        );
        sink.error("spec.steps", message);
    }
}

fn hours(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 60, minutes % 60) {
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

fn trigger(mut object: Object, policy: &Policy) -> Option<Trigger> {
    let source = object.text("source");
    let known: Vec<&str> = BUILT_IN_SOURCES
        .into_iter()
        .chain(policy.sources.iter().map(String::as_str))
        .collect();
    let path = object.path_of("source");
    match source.as_deref() {
        None if object.take("source").is_none() => {
            object.missing("source", &format!("it may be: {}", known.join(", ")));
        }
        Some(name) if !known.contains(&name) => {
            let message = match SourceName::new(name) {
                Err(error) => error.to_string(),
                Ok(_) => format!(
                    "unknown source \"{name}\"; {}",
                    did_you_mean(name, "the sources are", &known)
                ),
            };
            object.sink.error(&path, message);
        }
        _ => {}
    }
    let filters = object.texts("filters");
    for (label, expected) in &filters {
        if let Err(message) = filters::check(expected) {
            object
                .sink
                .error(&format!("{}.{label}", object.path_of("filters")), message);
        }
    }
    object.finish(&|_| None);
    Some(Trigger {
        source: source?,
        filters,
    })
}

fn runtime(mut object: Object, policy: &Policy) -> Runtime {
    let image = image(&mut object);
    let environment = object.texts("environment");
    check_variables(&object, "environment", &environment);
    for (name, value) in &environment {
        if value.contains("{{") || value.contains("{%") {
            let path = format!("{}.{name}", object.path_of("environment"));
            let message = "is taken as it stands; only a step's own env holds templates";
            object.sink.warning(&path, message);
        }
    }
    let llm_config = object
        .object("llm_config")
        .map(|object| llm_config(object, policy));
    object.finish(&|name| match name {
        "env" => Some("unknown field; did you mean \"environment\"?".to_owned()),
        "provider" | "model" | "endpoint" | "api_key_secret" | "temperature" | "max_tokens" | "max_turns" => {
            Some(format!("unknown field; \"{name}\" belongs into llm_config"))
        }
        _ => None,
    });
    Runtime {
        image,
        environment,
        llm_config,
    }
}

fn image(object: &mut Object) -> Option<String> {
    let image = object.filled_text("image")?;
    if image.chars().any(char::is_whitespace) {
        let message = format!("\"{image}\" is not an image's name: it holds white space");
        object.sink.error(&object.path_of("image"), message);
    }
    Some(image)
}

fn check_variables(object: &Object, field: &str, variables: &BTreeMap<String, String>) {
    for name in variables.keys() {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            let message = format!(
                "\"{name}\" is not a variable's name; use letters, digits and `_`, and no digit at the start"
            );
            object
                .sink
                .error(&format!("{}.{name}", object.path_of(field)), message);
        }
    }
}

fn llm_config(mut object: Object, policy: &Policy) -> LlmConfig {
    let providers = [
        ("anthropic", Provider::Anthropic),
        ("openai", Provider::OpenAi),
        ("scripted", Provider::Scripted),
    ];
    let provider = object.choice("provider", &providers);
    let mut model = object.filled_text("model");
    if let Some(written) = &model
        && let Some(current) = policy.model_aliases.get(written)
        && provider != Some(Provider::Scripted)
    {
        let message =
            format!("\"{written}\" is retired or has no date; \"{current}\" is used, by llm.model_aliases");
        object.sink.warning(&object.path_of("model"), message);
        model = Some(current.clone());
    }
    if provider == Some(Provider::Scripted)
        && let Some(file) = &model
        && (file.contains(['/', '\\']) || file.starts_with('.'))
    {
        let message = "for `scripted` this names a file in the configured directory, without a path";
        object.sink.error(&object.path_of("model"), message);
    }
    let endpoint = object.filled_text("endpoint");
    if let Some(Err(message)) = endpoint.as_deref().map(check_endpoint) {
        object.sink.error(&object.path_of("endpoint"), message);
    }
    let api_key_secret = object.filled_text("api_key_secret");
    if let Some(name) = &api_key_secret
        && WorkflowName::new(name.as_str()).is_err()
    {
        let message = "names a Kubernetes Secret in the workflow's namespace: lower-case letters, digits, \
                       `-` and `.`; a key itself must not stand in a manifest";
        object.sink.error(&object.path_of("api_key_secret"), message);
    }
    let temperature = object.number("temperature", 0.0..=2.0);
    let max_tokens = object.whole_number("max_tokens", 1..=1_000_000, &|_| String::new());
    let max_turns = object.whole_number("max_turns", 1..=200, &|_| String::new());
    object.finish(&|name| match name {
        "api_key" | "key" | "token" => Some(
            "a key must not stand in a manifest; put it into a Secret, and name that as api_key_secret"
                .to_owned(),
        ),
        "base_url" | "url" => Some("unknown field; did you mean \"endpoint\"?".to_owned()),
        _ => None,
    });
    LlmConfig {
        provider,
        model,
        endpoint,
        api_key_secret,
        temperature,
        max_tokens: max_tokens.and_then(|n| u32::try_from(n).ok()),
        max_turns: max_turns.and_then(|n| u32::try_from(n).ok()),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let rest = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .ok_or_else(|| format!("\"{endpoint}\" is not an address; it begins with https:// or http://"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || endpoint.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("\"{endpoint}\" is not an address"));
    }
    if authority.contains('@') {
        return Err(
            "holds credentials; put the key into a Secret, and name that as api_key_secret".to_owned(),
        );
    }
    Ok(())
}

fn step(sink: &Sink, index: usize, node: &Node, policy: &Policy) -> StepDraft {
    let path = format!("spec.steps[{index}]");
    let mut draft = StepDraft {
        index,
        name: None,
        timeout_ms: STEP_TIMEOUT_DEFAULT_MS,
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
    draft.timeout_ms = timeout(&mut object);
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

const CLI_FIELDS: [&str; 6] = ["command", "image", "env", "resources", "fix", "mode"];
const AGENT_FIELDS: [&str; 4] = ["goal", "tools", "llm_config", "on_timeout"];
const CONDITIONAL_FIELDS: [&str; 2] = ["condition", "on_false"];

fn timeout(object: &mut Object) -> u64 {
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
        (Some(minutes), _) => minutes * 60_000,
        (None, Some(seconds)) => seconds * 1000,
        (None, None) => STEP_TIMEOUT_DEFAULT_MS,
    }
}

/// The text that a step is about; empty and missing are different mistakes.
fn needed(object: &mut Object, name: &'static str, remedy: &str) -> Option<String> {
    let text = object.filled_text(name);
    if object.take(name).is_none() {
        object.missing(name, remedy);
    }
    text
}

fn cli(object: &mut Object) -> Option<CliStep> {
    let command = needed(object, "command", "it is the line that the shell runs");
    let image = image(object);
    let env = object.texts("env");
    check_variables(object, "env", &env);
    let resources = object.object("resources").map(resources);
    let fix = object.boolean("fix").unwrap_or_default();
    let mode = object.choice("mode", &[("auto", FixMode::Auto), ("propose", FixMode::Propose)]);
    Some(CliStep {
        command: command?,
        image,
        env,
        resources,
        fix,
        mode,
    })
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
    let goal = needed(object, "goal", "it says what the agent is to find out");
    let tools = tools(object, policy);
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

fn tools(object: &mut Object, policy: &Policy) -> Vec<Tool> {
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
        match tool(&name, policy) {
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

fn tool(name: &str, policy: &Policy) -> Result<Tool, String> {
    let servers: Vec<String> = policy
        .mcp_servers
        .iter()
        .map(|server| format!("mcp:{server}"))
        .collect();
    let known: Vec<&str> = Tool::NAMES
        .into_iter()
        .chain(servers.iter().map(String::as_str))
        .collect();
    match name.parse::<Tool>() {
        Ok(Tool::Mcp(server)) if !policy.mcp_servers.contains(&server) => {
            let hint = did_you_mean(name, "the tools are", &known);
            Err(format!(
                "the configuration lists no MCP server \"{server}\"; {hint}"
            ))
        }
        Ok(tool) => Ok(tool),
        Err(_) => {
            let hint = match name.to_lowercase().as_str() {
                "prometheus" | "prom" | "metrics" => "did you mean \"promql\"?".to_owned(),
                "http" | "wget" | "fetch" => "did you mean \"curl\"?".to_owned(),
                "kubernetes" | "k8s" => "did you mean \"kubectl\"?".to_owned(),
                _ => did_you_mean(name, "the tools are", &known),
            };
            Err(format!("unknown tool \"{name}\"; {hint}"))
        }
    }
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
        _ => needed(object, "condition", "write as in `alert.severity == critical`"),
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
