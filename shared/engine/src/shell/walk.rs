//! Walks a command's template through every branch, with values that could be anything.
//!
//! - The walk keeps the set of states the lexer can be in; where branches meet, the sets are joined.
//! - States that stand in different quotes, expansions or heredocs may not meet: then no value
//!   behind them would have one context.
//! - A loop is walked until it adds no new state.

use std::collections::BTreeSet;

use super::machine::Machine;
use crate::template::{Node, TemplateError};

/// Ways through a template that differ for the shell; more than these are refused.
const STATES_MAX: usize = 128;
/// Times a loop's body is walked before its states must have settled.
const LOOP_WALKS_MAX: usize = 64;

/// Walks until no further variable is found to hold a value.
const VARIABLE_WALKS_MAX: usize = 16;

/// Characters fed to the lexer, over all ways.
const CHARACTERS_MAX: usize = 20_000_000;

/// Finds what no value could make right in a command's template. `variables` are those of its environment that hold
/// values.
pub(crate) fn check(nodes: &[Node], source: &str, variables: &BTreeSet<String>) -> Vec<TemplateError> {
    if !holds_value(nodes) && variables.is_empty() {
        return Vec::new();
    }
    // A loop of the shell's can bring a variable's value back to what stands in front of it, so
    // the variables that hold values anywhere are collected first, and so on for those that get
    // them from these.
    let mut walks = 0;
    let mut tainted = variables.clone();
    let (mut walk, states) = loop {
        let mut walk = Walk::new(source);
        let ended = walk.nodes(nodes, vec![Machine::with_tainted(variables, &tainted)]);
        let known = tainted.len();
        for state in &ended {
            let mut state = state.clone();
            // The last word may be the one that gives a value to a variable; errors come later.
            let _ = state.finish();
            tainted.extend(state.tainted().cloned());
        }
        if tainted.len() == known {
            break (walk, ended);
        }
        walks += 1;
        if walks == VARIABLE_WALKS_MAX {
            walk.record(Err(
                "variables hand a value on from one to the next, too often to follow; use fewer".to_owned(),
            ));
            return walk.errors;
        }
    };
    walk.at = source.len();
    for mut state in states {
        let ended = state.finish();
        walk.record(ended);
    }
    walk.errors
}

fn holds_value(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| match node {
        Node::Value(_) => true,
        Node::If { branches, .. } => branches.iter().any(|branch| holds_value(branch)),
        Node::For { body, otherwise, .. } => holds_value(body) || holds_value(otherwise),
        Node::Text(_) | Node::Fold { .. } | Node::Break | Node::Continue => false,
    })
}

const TOO_MANY_WAYS: &str = "there are too many ways through this template to follow them all; split the step, or move branches into whole words";

struct Walk<'a> {
    source: &'a str,
    errors: Vec<TemplateError>,
    /// The last place of the source that is known.
    at: usize,
    loops: Vec<Exits>,
    /// Characters that may still be fed.
    left: usize,
}

/// The states in which a loop's body was left early.
#[derive(Default)]
struct Exits {
    breaks: Vec<Machine>,
    continues: Vec<Machine>,
}

impl<'a> Walk<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            source,
            errors: Vec::new(),
            at: 0,
            loops: Vec::new(),
            left: CHARACTERS_MAX,
        }
    }

    fn record(&mut self, result: Result<(), String>) {
        let Err(message) = result else {
            return;
        };
        let error = TemplateError::at(self.source, self.at, message);
        if !self
            .errors
            .iter()
            .any(|known| known.line == error.line && known.message == error.message)
        {
            self.errors.push(error);
        }
    }

    /// Walks nodes from `states`; after an error a state goes on, unless the lexer has lost its way.
    fn nodes(&mut self, nodes: &[Node], mut states: Vec<Machine>) -> Vec<Machine> {
        for node in nodes {
            states = self.node(node, states);
        }
        states
    }

    fn node(&mut self, node: &Node, states: Vec<Machine>) -> Vec<Machine> {
        match node {
            Node::Text(text) => {
                self.left = self.left.saturating_sub(text.len() * states.len());
                if self.left == 0 {
                    self.record(Err(TOO_MANY_WAYS.to_owned()));
                    return Vec::new();
                }
                self.each(states, |state| text.chars().try_for_each(|c| state.text(c)))
            }
            Node::Value(offset) => {
                self.at = *offset;
                self.each(states, |state| state.value(None).map(|_| ()))
            }
            Node::If { branches, always } => {
                let mut joined = if *always { Vec::new() } else { states.clone() };
                for branch in branches {
                    let ended = self.nodes(branch, states.clone());
                    joined = self.join(joined, ended);
                }
                joined
            }
            Node::For {
                body,
                otherwise,
                offset,
            } => self.for_loop(body, otherwise, *offset, states),
            Node::Break => {
                if let Some(exits) = self.loops.last_mut() {
                    exits.breaks.extend(states);
                }
                Vec::new()
            }
            Node::Continue => {
                if let Some(exits) = self.loops.last_mut() {
                    exits.continues.extend(states);
                }
                Vec::new()
            }
            Node::Fold { .. } => states,
        }
    }

    fn each(
        &mut self,
        states: Vec<Machine>,
        mut act: impl FnMut(&mut Machine) -> Result<(), String>,
    ) -> Vec<Machine> {
        let mut kept: Vec<Machine> = Vec::with_capacity(states.len());
        for mut state in states {
            let acted = act(&mut state);
            let is_over = acted.is_err() && state.is_lost();
            self.record(acted);
            if !is_over && !kept.contains(&state) {
                kept.push(state);
            }
        }
        kept
    }

    fn join(&mut self, mut states: Vec<Machine>, more: Vec<Machine>) -> Vec<Machine> {
        for state in more {
            if states.contains(&state) {
                continue;
            }
            if let Some(known) = states.first()
                && !known.agrees_with(&state)
            {
                self.record(Err("the branches in front of this end in different quotes, expansions or heredocs; open and close them in the same branch".to_owned()));
                continue;
            }
            if states.len() >= STATES_MAX {
                self.record(Err(TOO_MANY_WAYS.to_owned()));
                break;
            }
            states.push(state);
        }
        states
    }

    fn for_loop(
        &mut self,
        body: &[Node],
        otherwise: &[Node],
        offset: usize,
        states: Vec<Machine>,
    ) -> Vec<Machine> {
        let mut known = states.clone();
        let mut after = if otherwise.is_empty() {
            states.clone()
        } else {
            self.nodes(otherwise, states)
        };
        for walks in 0.. {
            self.loops.push(Exits::default());
            let ended = self.nodes(body, known.clone());
            let exits = self.loops.pop().unwrap_or_default();
            let before = known.len();
            after = self.join(after, ended.clone());
            after = self.join(after, exits.breaks);
            after = self.join(after, exits.continues.clone());
            known = self.join(known, ended);
            known = self.join(known, exits.continues);
            if known.len() == before {
                break;
            }
            if walks == LOOP_WALKS_MAX {
                self.at = offset;
                self.record(Err("what this loop writes cannot be followed: it builds up one word without end; separate what it writes by spaces".to_owned()));
                break;
            }
        }
        after
    }
}
