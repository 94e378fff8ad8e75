//! `docs/cli.md` says what the command line can do.

use clap::CommandFactory;

#[test]
fn every_command_and_option_is_documented() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md")).unwrap();
    let mut missing = Vec::new();
    walk(&fist::args::Args::command(), "fist", &page, &mut missing);
    assert!(
        missing.is_empty(),
        "docs/cli.md does not mention: {}",
        missing.join(", ")
    );
}

fn walk(command: &clap::Command, name: &str, page: &str, missing: &mut Vec<String>) {
    for argument in command.get_arguments() {
        if let Some(long) = argument
            .get_long()
            .filter(|long| !matches!(*long, "help" | "version"))
        {
            let section = section(page, name);
            if !section.contains(&format!("`--{long}")) {
                missing.push(format!("{name} --{long}"));
            }
        }
    }
    for below in command.get_subcommands() {
        let name = format!("{name} {}", below.get_name());
        if below.get_subcommands().next().is_none() && section(page, &name).is_empty() {
            missing.push(name.clone());
        }
        walk(below, &name, page, missing);
    }
}

/// What the page says below the heading of a command; options of all commands stand before the first.
fn section<'a>(page: &'a str, name: &str) -> &'a str {
    if name == "fist" {
        return page.split("\n## ").next().unwrap();
    }
    let heading = format!("\n## `{name}");
    let Some((_, rest)) = page.split_once(&heading) else {
        return "";
    };
    rest.split("\n## ").next().unwrap()
}
