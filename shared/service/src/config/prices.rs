//! `[llm.prices."<model>"]`: what a model costs.
//!
//! Names are the models' own, so these are configured in the file only.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Problem;
use super::layers::{Layers, table_of};
use super::reader::Section;

/// What a model costs, in millionths of a US dollar for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Tokens that it reads.
    pub input: u64,
    /// Tokens that it writes.
    pub output: u64,
    /// Tokens that it reads from the provider's cache.
    pub cached: u64,
}

impl Price {
    /// What a call costs in billionths of a US dollar, rounded down; `cached` tokens are a part of `input`.
    pub fn cost_nano_usd(&self, input: u64, cached: u64, output: u64) -> u64 {
        let cost = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let cached = cached.min(input);
        let sum = cost(input - cached, self.input) + cost(cached, self.cached) + cost(output, self.output);
        // Millionths for a million tokens are, for one token, thousandths of a billionth.
        u64::try_from(sum / 1000).unwrap_or(u64::MAX)
    }
}

/// Name of the section that stands for any model in `config.default.toml`.
const SHAPE: &str = "llm.prices.<model>";

pub(super) fn read(layers: &mut Layers) -> BTreeMap<String, Price> {
    let llm = table_of(&layers.file.values, "llm");
    let configured = match llm.get("prices") {
        None => Table::new(),
        Some(Value::Table(table)) => table.clone(),
        Some(_) => {
            let text = "must be sections, written [llm.prices.\"MODEL\"]";
            let place = layers.file.place("llm.prices");
            layers
                .problems
                .push(Problem::new("llm.prices", None, text).at(&place));
            Table::new()
        }
    };
    let prices = table_of(&table_of(&layers.defaults, "llm"), "prices");
    let defaults = table_of(&prices, "<model>");
    let mut prices = BTreeMap::new();
    for (model, value) in configured {
        let path = format!("llm.prices.{model}");
        let place = layers.file.place(&path);
        let Value::Table(table) = value else {
            let text = format!("must be a section, written [llm.prices.\"{model}\"]");
            layers.problems.push(Problem::new(&path, None, text).at(&place));
            continue;
        };
        let mut section = Section::nested(layers, &path, SHAPE, defaults.clone(), table);
        let (input, output, cached) = (
            section.price("input"),
            section.price("output"),
            section.price("cached"),
        );
        let mut missing = |key| section.problem(key, "must be set too: US dollars for a million tokens");
        let (input, output) = match (input, output, cached) {
            (Some(input), Some(output), _) => (input, output),
            // A section as it stands in the documented defaults.
            (None, None, None) => continue,
            // Half a price would show costs that are too low.
            (None, _, _) => {
                missing("input");
                continue;
            }
            (_, None, _) => {
                missing("output");
                continue;
            }
        };
        prices.insert(
            model,
            Price {
                input,
                output,
                cached: cached.unwrap_or(input),
            },
        );
    }
    prices
}
