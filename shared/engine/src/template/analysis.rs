//! Reads a template's structure: its branches, the paths it reads, and what must be rewritten
//! before Tera sees it.
//!
//! - A name that is neither a root nor bound in the template is an error: nothing outside the
//!   context can be reached, and Tera's own internals (`__tera_context`) are no exception.
//! - Filters, tests and functions are a closed list; none reads a clock, chance, a file or the
//!   process's environment.
//! - Every printed expression goes through our print filter, every loop's list through a bound.
//! - Rewriting only inserts and replaces within a line, so that Tera's line numbers stay true.

use super::edits::Edits;
use super::tokens::{Inside, Kind as Tok, Piece, Token};
use super::{Kind, Reference, TemplateError, environment};

/// The only names a template may begin a path with.
pub(super) const ROOTS: [&str; 5] = ["source", "alert", "steps", "env", "execution"];

/// A render cannot be interrupted, so loops may nest only this deep.
const LOOP_NESTING_MAX: usize = 2;

const KEYWORDS: [&str; 15] = [
    "and", "or", "not", "in", "is", "if", "else", "for", "true", "false", "True", "False", "none", "None",
    "null",
];

/// A template as the shell's walk needs it: what is printed, and on which branches.
pub(crate) enum Node {
    Text(String),
    /// A printed expression, by the byte where it begins.
    Value(usize),
    /// The branches of an `if`; one of them is always taken when `always` (there is an `else`).
    If {
        branches: Vec<Vec<Node>>,
        always: bool,
    },
    For {
        body: Vec<Node>,
        otherwise: Vec<Node>,
        offset: usize,
    },
    Break,
    Continue,
    /// A `{% filter %}` section without expressions: bytes of the source to render once.
    Fold {
        start: usize,
        end: usize,
    },
}

pub(super) struct Analysis {
    pub nodes: Vec<Node>,
    pub references: Vec<Reference>,
    pub edits: Edits,
    pub printed: Vec<Printed>,
    pub errors: Vec<TemplateError>,
}

/// A printed expression: the bytes between its braces.
#[derive(Clone, Copy)]
pub(super) struct Printed {
    pub start: usize,
    pub end: usize,
    /// It is a path of the context's and nothing more.
    pub is_path: bool,
}

/// The template cannot be followed any further; the error is recorded already.
struct Stop;

pub(super) fn analyse(source: &str, pieces: &[Piece<'_>], kind: Kind, steps: &[&str]) -> Analysis {
    let mut reader = Reader {
        source,
        pieces,
        kind,
        steps,
        next: 0,
        loops: Vec::new(),
        comprehensions: 0,
        set: Vec::new(),
        captures: 0,
        path_end: 0,
        out: Analysis {
            nodes: Vec::new(),
            references: Vec::new(),
            edits: Edits::default(),
            printed: Vec::new(),
            errors: Vec::new(),
        },
    };
    if let Ok(nodes) = reader.block(&[]) {
        reader.out.nodes = nodes;
    }
    reader.out
}

struct Reader<'a> {
    source: &'a str,
    pieces: &'a [Piece<'a>],
    kind: Kind,
    steps: &'a [&'a str],
    next: usize,
    /// The variables of the loops around this place, one entry a loop.
    loops: Vec<Vec<String>>,
    comprehensions: usize,
    set: Vec<String>,
    captures: usize,
    /// The index behind the path that was read last.
    path_end: usize,
    out: Analysis,
}

impl<'a> Reader<'a> {
    fn error(&mut self, offset: usize, message: impl Into<String>) {
        self.out
            .errors
            .push(TemplateError::at(self.source, offset, message));
    }

    fn stop(&mut self, offset: usize, message: impl Into<String>) -> Stop {
        self.error(offset, message);
        Stop
    }

    /// Reads nodes up to one of the tags in `until`, which stays unread.
    fn block(&mut self, until: &[&str]) -> Result<Vec<Node>, Stop> {
        let mut nodes = Vec::new();
        let opened = self
            .pieces
            .get(self.next.wrapping_sub(1))
            .map_or(0, |piece| match piece {
                Piece::Tag(tag) => tag.start,
                _ => 0,
            });
        while let Some(piece) = self.pieces.get(self.next) {
            match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text((*text).to_owned()));
                    self.next += 1;
                }
                Piece::Value(inside) => {
                    self.next += 1;
                    nodes.push(self.printed(inside)?);
                }
                Piece::Tag(tag) => {
                    let Some(Token {
                        kind: Tok::Name(name),
                        ..
                    }) = tag.tokens.first()
                    else {
                        return Err(
                            self.stop(tag.start, "a tag begins with a word such as `if`, `for` or `set`")
                        );
                    };
                    if until.contains(name) {
                        return Ok(nodes);
                    }
                    self.next += 1;
                    nodes.extend(self.tag(name, tag)?);
                }
            }
        }
        match until.last() {
            None => Ok(nodes),
            Some(end) => Err(self.stop(opened, format!("this tag is never closed: write `{{% {end} %}}`"))),
        }
    }

    fn printed(&mut self, inside: &Inside<'a>) -> Result<Node, Stop> {
        let Some((start, end)) = inside.range() else {
            return Err(self.stop(inside.start, "`{{ }}` holds nothing: name what is to be printed"));
        };
        self.expression(&inside.tokens);
        let is_path = self.path_end == inside.tokens.len()
            && self
                .out
                .references
                .last()
                .is_some_and(|last| last.offset == start && !last.is_dynamic && !last.is_bound);
        self.out.edits.insert(start, "(");
        self.out.edits.insert(
            end,
            format!(") | {}(n={})", environment::PRINT, self.out.printed.len()),
        );
        self.out.printed.push(Printed { start, end, is_path });
        Ok(Node::Value(inside.start))
    }

    fn tag(&mut self, name: &str, tag: &Inside<'a>) -> Result<Option<Node>, Stop> {
        let rest = &tag.tokens[1..];
        match name {
            "if" => self.branches(rest).map(Some),
            "for" => self.for_loop(tag).map(Some),
            "set" | "set_global" => self.set(tag).map(|()| None),
            "filter" => self.filter_section(tag),
            "break" => Ok(Some(Node::Break)),
            "continue" => Ok(Some(Node::Continue)),
            "include" | "extends" | "import" | "block" | "macro" | "component" => {
                let message =
                    format!("`{{% {name} %}}` reaches beyond this template; write its text out here");
                Err(self.stop(tag.start, message))
            }
            _ => {
                let message = format!(
                    "unknown tag `{name}`; there are if, for, set, set_global, filter, raw, break and continue"
                );
                Err(self.stop(tag.start, message))
            }
        }
    }

    fn branches(&mut self, condition: &[Token<'a>]) -> Result<Node, Stop> {
        self.expression(condition);
        let mut branches = vec![self.block(&["elif", "else", "endif"])?];
        let mut always = false;
        while let Some(Piece::Tag(tag)) = self.pieces.get(self.next) {
            self.next += 1;
            let first = &tag.tokens[0];
            if first.is_name("endif") {
                break;
            }
            if first.is_name("elif") {
                self.expression(&tag.tokens[1..]);
                branches.push(self.block(&["elif", "else", "endif"])?);
            } else {
                always = true;
                branches.push(self.block(&["endif"])?);
            }
        }
        Ok(Node::If { branches, always })
    }

    fn for_loop(&mut self, tag: &Inside<'a>) -> Result<Node, Stop> {
        let Some(position) = tag.tokens.iter().position(|token| token.is_name("in")) else {
            return Err(self.stop(tag.start, "write `{% for item in list %}`"));
        };
        let mut names = Vec::new();
        for token in &tag.tokens[1..position] {
            if let Tok::Name(name) = token.kind {
                self.bind(name, token.start);
                names.push(name.to_owned());
            }
        }
        let list = &tag.tokens[position + 1..];
        self.expression(list);
        self.bound_list(list);
        if self.captures > 0 {
            self.error(tag.start, "a loop cannot stand inside `{% set %}` or `{% filter %}`, where what it prints has no bound; use the `join` filter");
        }
        self.loops.push(names);
        self.check_nesting(tag.start);
        let body = self.block(&["else", "endfor"]);
        self.loops.pop();
        let body = body?;
        let mut otherwise = Vec::new();
        if let Some(Piece::Tag(end)) = self.pieces.get(self.next) {
            self.next += 1;
            if end.tokens[0].is_name("else") {
                otherwise = self.block(&["endfor"])?;
                self.next += 1;
            }
        }
        Ok(Node::For {
            body,
            otherwise,
            offset: tag.start,
        })
    }

    fn check_nesting(&mut self, offset: usize) {
        if self.loops.len() + self.comprehensions > LOOP_NESTING_MAX {
            self.error(
                offset,
                format!("loops nest at most {LOOP_NESTING_MAX} deep, since a render cannot be interrupted"),
            );
        }
    }

    /// Passes a loop's list through the filter that bounds how often the loop runs.
    fn bound_list(&mut self, list: &[Token<'a>]) {
        if let (Some(first), Some(last)) = (list.first(), list.last()) {
            let filter = if self.loops.len() + self.comprehensions == 0 {
                environment::ITEMS
            } else {
                environment::ITEMS_NESTED
            };
            self.out.edits.insert(first.start, "(");
            self.out.edits.insert(last.end, format!(") | {filter}"));
        }
    }

    fn set(&mut self, tag: &Inside<'a>) -> Result<(), Stop> {
        let Some(Token {
            kind: Tok::Name(name),
            start,
            ..
        }) = tag.tokens.get(1)
        else {
            return Err(self.stop(tag.start, "write `{% set name = value %}`"));
        };
        self.bind(name, *start);
        if tag.tokens.get(2).is_some_and(|token| token.is("=")) {
            let value = &tag.tokens[3..];
            self.expression(value);
            if let (Some(first), Some(last)) = (value.first(), value.last()) {
                self.out.edits.insert(first.start, "(");
                self.out
                    .edits
                    .insert(last.end, format!(") | {}", environment::BOUNDED));
            }
        } else {
            self.expression(&tag.tokens[2..]);
            self.captured(tag, "set", "endset")?;
        }
        self.set.push((*name).to_owned());
        Ok(())
    }

    fn filter_section(&mut self, tag: &Inside<'a>) -> Result<Option<Node>, Stop> {
        // The filters stand without the value they work on: `{% filter upper | trim %}`.
        if let Some(Token {
            kind: Tok::Name(name),
            start,
            ..
        }) = tag.tokens.get(1)
        {
            self.check_filter(name, *start);
        }
        let known = self.out.references.len();
        self.expression(tag.tokens.get(2..).unwrap_or_default());
        if self.kind == Kind::Command && self.out.references.len() > known {
            self.error(
                tag.start,
                "in a command, the filters of a section may not read values: these would become the command's own text; give the filter to the expression itself: `{{ value | filter }}`",
            );
        }
        let end = self.captured(tag, "filter", "endfilter")?;
        Ok(Some(Node::Fold {
            start: tag.start,
            end,
        }))
    }

    /// Reads a section whose output is kept instead of printed; gives the byte where it ends.
    fn captured(&mut self, tag: &Inside<'a>, name: &str, end: &str) -> Result<usize, Stop> {
        self.captures += 1;
        let body = self.block(&[end]);
        self.captures -= 1;
        let body = body?;
        self.next += 1;
        if self.kind == Kind::Command
            && body
                .iter()
                .any(|node| !matches!(node, Node::Text(_) | Node::Fold { .. }))
        {
            let remedy = match name {
                "set" => "write `{% set name = expression %}`",
                _ => "give the filter to the expression itself: `{{ value | filter }}`",
            };
            self.error(tag.start, format!("in a command, `{{% {name} %}}` may not hold an expression, since what it prints could be changed after it was escaped; {remedy}"));
        }
        // The section ends where the next piece begins: pieces touch, and none is empty here.
        let closing = match self.pieces.get(self.next - 1) {
            Some(Piece::Tag(closing)) => closing.start,
            _ => tag.start,
        };
        Ok(self.source[closing..]
            .find("%}")
            .map_or(self.source.len(), |length| closing + length + 2))
    }

    /// Refuses names that would hide a root or one of Tera's own.
    fn bind(&mut self, name: &str, offset: usize) {
        if ROOTS.contains(&name) || name.starts_with("__") {
            self.error(
                offset,
                format!("`{name}` cannot be the name of a variable here: it is taken"),
            );
        }
    }

    fn is_bound(&self, name: &str) -> bool {
        let is_loop = name == "loop" && !self.loops.is_empty();
        is_loop
            || self
                .set
                .iter()
                .chain(self.loops.iter().flatten())
                .any(|bound| bound == name)
    }

    /// Reads one expression: its paths, and the names of its filters, tests and functions.
    fn expression(&mut self, tokens: &[Token<'a>]) {
        let mut comprehensions: Vec<usize> = Vec::new();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let before = at.checked_sub(1).and_then(|index| tokens.get(index));
            match &token.kind {
                Tok::Name(name) => {
                    at = self.name(name, tokens, at);
                    continue;
                }
                Tok::Sign("[") if expects_operand(before) => {
                    if let Some(close) = self.open_comprehension(tokens, at) {
                        comprehensions.push(close);
                    }
                }
                Tok::Sign("]") if comprehensions.last() == Some(&at) => {
                    comprehensions.pop();
                    self.comprehensions -= 1;
                    self.loops_pop_comprehension();
                }
                Tok::Sign("<" | "</") if expects_operand(before) => {
                    self.error(
                        token.start,
                        "components reach beyond this template; write their text out here",
                    );
                }
                Tok::Sign("~") => self.join_operands(tokens, at),
                _ => {}
            }
            at += 1;
        }
        // Brackets that do not match are Tera's to report; the depth must not stay wrong.
        for _ in comprehensions {
            self.comprehensions -= 1;
            self.loops_pop_comprehension();
        }
    }

    fn loops_pop_comprehension(&mut self) {
        // A comprehension's variables lie on the set names: they cannot outlive the expression.
        if let Some(position) = self.set.iter().rposition(|name| name == COMPREHENSION) {
            self.set.truncate(position);
        }
    }

    /// `[expression for name in list if condition]`: binds the names, and bounds the list.
    fn open_comprehension(&mut self, tokens: &[Token<'a>], open: usize) -> Option<usize> {
        let close = matching(tokens, open)?;
        let inner = open + 1..close;
        let word = |from: usize, words: &[&str]| {
            top_level(tokens, from..close).find(|index| words.iter().any(|word| tokens[*index].is_name(word)))
        };
        let for_at = word(inner.start, &["for"])?;
        let in_at = word(for_at, &["in"])?;
        let list_end = word(in_at + 1, &["if"]).unwrap_or(close);
        self.bound_list(&tokens[in_at + 1..list_end]);
        self.set.push(COMPREHENSION.to_owned());
        for token in &tokens[for_at + 1..in_at] {
            if let Tok::Name(name) = token.kind {
                self.bind(name, token.start);
                self.set.push(name.to_owned());
            }
        }
        self.comprehensions += 1;
        self.check_nesting(tokens[open].start);
        Some(close)
    }

    /// A name: keyword, filter, test, function, argument or the root of a path. Gives the next index.
    fn name(&mut self, name: &'a str, tokens: &[Token<'a>], at: usize) -> usize {
        let before = at.checked_sub(1).and_then(|index| tokens.get(index));
        let before_that = at.checked_sub(2).and_then(|index| tokens.get(index));
        let after = tokens.get(at + 1);
        let start = tokens[at].start;
        let is_test = before.is_some_and(|token| token.is_name("is"))
            || (before.is_some_and(|token| token.is_name("not"))
                && before_that.is_some_and(|token| token.is_name("is")));
        if before.is_some_and(|token| token.is(".") || token.is("?."))
            || after.is_some_and(|token| token.is("="))
        {
            return at + 1;
        }
        if before.is_some_and(|token| token.is("|")) {
            self.check_filter(name, start);
            return at + 1;
        }
        if is_test && name != "not" {
            if !environment::TESTS.contains(&name) {
                self.error(
                    start,
                    format!(
                        "there is no test `{name}`; there are {}",
                        environment::TESTS.join(", ")
                    ),
                );
            }
            return at + 1;
        }
        if KEYWORDS.contains(&name) {
            return at + 1;
        }
        if after.is_some_and(|token| token.is("(")) {
            if !environment::FUNCTIONS.contains(&name) {
                self.error(
                    start,
                    format!(
                        "there is no function `{name}`; there are {}",
                        environment::FUNCTIONS.join(", ")
                    ),
                );
            }
            return at + 1;
        }
        self.path(name, tokens, at)
    }

    fn check_filter(&mut self, name: &str, offset: usize) {
        if name == "safe" && self.kind == Kind::Command {
            self.error(
                offset,
                "`safe` is refused in a command, where every value is escaped; leave it out",
            );
        } else if !environment::FILTERS.contains(&name) {
            let nearest = nearest(name, environment::FILTERS.iter().copied());
            self.error(offset, format!("there is no filter `{name}`{nearest}"));
        }
    }

    fn path(&mut self, root: &'a str, tokens: &[Token<'a>], at: usize) -> usize {
        let offset = tokens[at].start;
        let mut path = vec![root.to_owned()];
        let mut end = at + 1;
        let mut is_dynamic = false;
        while let [first, rest @ ..] = &tokens[end..] {
            if first.is(".") || first.is("?.") {
                match rest.first().map(|token| &token.kind) {
                    Some(Tok::Name(name)) => path.push((*name).to_owned()),
                    Some(Tok::Step(name)) => {
                        self.rewrite_step(name, first, &rest[0]);
                        path.push((*name).to_owned());
                    }
                    _ => break,
                }
                end += 2;
            } else if first.is("[") || first.is("?[") {
                match rest {
                    [
                        Token {
                            kind: Tok::Text(key), ..
                        },
                        close,
                        ..,
                    ] if close.is("]") => path.push(key.clone()),
                    [
                        Token {
                            kind: Tok::Integer(key),
                            ..
                        },
                        close,
                        ..,
                    ] if close.is("]") => path.push((*key).to_owned()),
                    _ => {
                        is_dynamic = true;
                        break;
                    }
                }
                end += 3;
            } else {
                break;
            }
        }
        let is_bound = self.is_bound(root);
        if !is_bound {
            self.check_root(&path, is_dynamic, tokens, at);
        }
        self.path_end = end;
        self.out.references.push(Reference {
            path,
            is_dynamic,
            is_bound,
            offset,
            line: super::line_of(self.source, offset),
        });
        end
    }

    fn check_root(&mut self, path: &[String], is_dynamic: bool, tokens: &[Token<'a>], at: usize) {
        let offset = tokens[at].start;
        let root = path[0].as_str();
        if !ROOTS.contains(&root) {
            let mut message = format!(
                "`{root}` is nothing a template can read; there are {}",
                ROOTS.join(", ")
            );
            if let Some(hyphenated) = hyphenated(self.source, tokens, at) {
                message = format!(
                    "`{hyphenated}` reads as a subtraction; write [\"{hyphenated}\"], or spaces around the `-`"
                );
            } else if root.starts_with("__") {
                message = format!(
                    "`{root}` is internal to the template engine; a template reads {}",
                    ROOTS.join(", ")
                );
            }
            self.error(offset, message);
        } else if root == "steps" {
            match path.get(1) {
                Some(step) if !self.steps.contains(&step.as_str()) => {
                    let nearest = nearest(step, self.steps.iter().copied());
                    let hint = if step.contains('-') {
                        "; for a subtraction, put spaces around the `-`"
                    } else {
                        ""
                    };
                    self.error(offset, format!("there is no step `{step}`{nearest}{hint}"));
                }
                None if is_dynamic => {
                    self.error(offset, "a step is named in the template itself, as in steps.<name>, so that it can be checked beforehand");
                }
                _ => {}
            }
        }
    }

    /// Tera's names know no hyphens and no digit in front: `.a-b` becomes `["a-b"]`.
    fn rewrite_step(&mut self, name: &str, dot: &Token<'_>, step: &Token<'_>) {
        if name.contains('-') || name.starts_with(|c: char| c.is_ascii_digit()) {
            let optional = if dot.is("?.") { "?" } else { "" };
            self.out
                .edits
                .replace(dot.start, step.end, format!("{optional}[\"{name}\"]"));
        }
    }

    /// Tera's `~` lets what is missing or null vanish: both operands pass through our own filter.
    fn join_operands(&mut self, tokens: &[Token<'a>], at: usize) {
        let filter = format!(" | {}", environment::TEXT);
        if let Some(left) = at.checked_sub(1).and_then(|index| tokens.get(index)) {
            self.out.edits.insert_once(left.end, filter.clone());
        }
        if let Some(last) = operand_end(tokens, at + 1)
            .checked_sub(1)
            .and_then(|index| tokens.get(index))
        {
            self.out.edits.insert_once(last.end, filter);
        }
    }
}

/// Parts the comprehensions' names from the rest; no template can write it.
const COMPREHENSION: &str = "[";

/// Whether an operand, not an operator, must come behind `before`.
fn expects_operand(before: Option<&Token<'_>>) -> bool {
    match before.map(|token| &token.kind) {
        None => true,
        Some(Tok::Sign(sign)) => !matches!(*sign, ")" | "]" | "}"),
        Some(Tok::Name(name)) => matches!(*name, "and" | "or" | "not" | "in" | "if" | "else"),
        Some(_) => false,
    }
}

/// The index of the bracket that closes the one at `open`.
fn matching(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Tok::Sign("(" | "[" | "?[" | "{") => depth += 1,
            Tok::Sign(")" | "]" | "}") => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

/// The indexes in `range` that stand in no further brackets.
fn top_level<'t>(tokens: &'t [Token<'_>], range: std::ops::Range<usize>) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0_usize;
    range.filter(move |index| {
        match tokens[*index].kind {
            Tok::Sign("(" | "[" | "?[" | "{") => depth += 1,
            Tok::Sign(")" | "]" | "}") => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    })
}

/// The index behind the operand that begins at `at`: a path, literal or bracket, and its filters.
fn operand_end(tokens: &[Token<'_>], at: usize) -> usize {
    let mut end = at;
    if let Some(Token {
        kind: Tok::Sign("(" | "[" | "{"),
        ..
    }) = tokens.get(end)
    {
        end = matching(tokens, end).unwrap_or(tokens.len() - 1);
    }
    end += 1;
    while let Some(token) = tokens.get(end) {
        match token.kind {
            Tok::Sign("." | "?." | "|") => end += 2,
            Tok::Sign("[" | "?[" | "(") => match matching(tokens, end) {
                Some(close) => end = close + 1,
                None => break,
            },
            _ => break,
        }
    }
    end.min(tokens.len())
}

/// `a-b` written without spaces around the hyphen, when `at` is the index of its last part.
fn hyphenated<'a>(source: &'a str, tokens: &[Token<'_>], at: usize) -> Option<&'a str> {
    let minus = tokens.get(at.checked_sub(1)?)?;
    let before = tokens.get(at.checked_sub(2)?)?;
    let is_adjacent = minus.is("-") && minus.end == tokens[at].start && before.end == minus.start;
    let is_name = matches!(before.kind, Tok::Name(_));
    (is_adjacent && is_name).then(|| &source[before.start..tokens[at].end])
}

/// `; did you mean …` where something near exists, else nothing.
pub(super) fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut best: Option<(f64, &str)> = None;
    for candidate in names {
        let likeness = strsim::jaro_winkler(name, candidate);
        if likeness > best.map_or(0.75, |(likeness, _)| likeness) {
            best = Some((likeness, candidate));
        }
    }
    best.map_or_else(String::new, |(_, candidate)| {
        format!("; did you mean `{candidate}`?")
    })
}
