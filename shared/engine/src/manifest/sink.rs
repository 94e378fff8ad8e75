//! Gathers the problems of one manifest, and remembers where its fields stand.
//!
//! Invariants:
//! - A problem gets the line of its field, or of the nearest thing round it.
//! - However many problems there are, what is kept is bounded; the last one says how many more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::located::{LINE_UNKNOWN, Node};
use crate::problem::{PROBLEMS_MAX, Problem, Severity};

/// So many problems are collected before they are put in order; more are only counted.
const COLLECTED_MAX: usize = 1000;

/// Where problems go, and where fields stand.
#[derive(Default)]
pub(super) struct Sink {
    problems: RefCell<Vec<Problem>>,
    left_out: Cell<usize>,
    lines: RefCell<HashMap<String, Place>>,
}

#[derive(Clone, Copy)]
struct Place {
    line: u32,
    is_block: bool,
}

impl Sink {
    pub(super) fn error(&self, path: &str, message: impl Into<String>) {
        self.add(Problem::error(path, message));
    }

    pub(super) fn warning(&self, path: &str, message: impl Into<String>) {
        self.add(Problem::warning(path, message));
    }

    pub(super) fn error_at(&self, path: &str, line: u32, message: impl Into<String>) {
        let line = (line != LINE_UNKNOWN).then_some(line);
        self.add(Problem {
            line,
            ..Problem::error(path, message)
        });
    }

    /// Adds a problem, and its line where it has none. A line that it has counts within the field's
    /// own text, from 1.
    pub(super) fn add_within(&self, problem: Problem) {
        let within = problem.line;
        let line = self.place(&problem.field).map(|place| match within {
            Some(within) if place.is_block => place.line + within,
            _ => place.line,
        });
        self.add(Problem { line, ..problem });
    }

    fn add(&self, mut problem: Problem) {
        if problem.line.is_none() {
            problem.line = self.place(&problem.field).map(|place| place.line);
        }
        let mut problems = self.problems.borrow_mut();
        if problems.len() >= COLLECTED_MAX {
            self.left_out.set(self.left_out.get() + 1);
        } else if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    pub(super) fn register(&self, path: &str, line: u32, node: &Node) {
        if line != LINE_UNKNOWN {
            let place = Place {
                line,
                is_block: node.is_block,
            };
            self.lines.borrow_mut().insert(path.to_owned(), place);
        }
    }

    /// Where a field stands, or the nearest thing round it.
    fn place(&self, path: &str) -> Option<Place> {
        let lines = self.lines.borrow();
        let mut path = path;
        loop {
            if let Some(place) = lines.get(path) {
                return Some(*place);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Errors and warnings, each in the order of the text, at most [`PROBLEMS_MAX`].
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let left_out = self.left_out.get();
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line.unwrap_or(u32::MAX));
        let (errors, warnings): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_error);
        (
            bounded(errors, left_out, Severity::Error),
            bounded(warnings, 0, Severity::Warning),
        )
    }
}

fn bounded(mut problems: Vec<Problem>, more: usize, severity: Severity) -> Vec<Problem> {
    if problems.len() > PROBLEMS_MAX {
        let left_out = problems.len() - PROBLEMS_MAX + more;
        problems.truncate(PROBLEMS_MAX);
        let message = format!("and {left_out} more problems, not listed");
        problems.push(Problem {
            severity,
            ..Problem::error("", message)
        });
    }
    problems
}
