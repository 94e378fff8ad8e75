//! What each command does, one file each.

mod alert;
mod apply;
mod cancel;
mod crd;
mod delete;
mod doctor;
mod eval;
mod follow;
mod get;
mod health;
mod logs;
mod nats;
mod purge;
mod replay;
mod report;
mod run;
mod store;
mod validate;

use crate::{
    args::{Alert, Args, Command, Nats, Store},
    client::Client,
    failure::{Code, Failure},
    up,
};

/// What a command gives: its exit code.
pub type Outcome = Result<Code, Failure>;

/// Does what was asked.
pub async fn run(args: Args) -> Outcome {
    let client = || Client::new(&args.server, token());
    match args.command {
        Command::Up(asked) => Box::pin(up::run(asked)).await,
        Command::Apply(asked) => apply::run(&client()?, &asked).await,
        Command::Run(asked) => run::run(&client()?, &asked).await,
        Command::Get(asked) => get::run(&client()?, &asked).await,
        Command::Watch(asked) => follow::watch(&client()?, &asked).await,
        Command::Logs(asked) => logs::run(&client()?, &asked).await,
        Command::Replay(asked) => replay::run(&client()?, &asked).await,
        Command::Purge(asked) => purge::run(&client()?, &asked).await,
        Command::Report(asked) => report::run(&client()?, &asked).await,
        Command::Cancel(asked) => cancel::run(&client()?, &asked).await,
        Command::Alert(Alert::Send(asked)) => alert::send(&client()?, asked).await,
        Command::Validate(asked) => validate::run(&asked),
        Command::Eval(asked) => Box::pin(eval::run(client, &asked)).await,
        Command::Delete(asked) => delete::run(&client()?, &asked).await,
        Command::Doctor(asked) => doctor::run(client(), &asked).await,
        Command::Crd => crd::run(),
        Command::Health(_) => health::run(&client()?).await,
        Command::Nats(Nats::Init(asked)) => nats::init(asked).await,
        Command::Nats(Nats::Users) => nats::users(),
        Command::Store(Store::Rebuild(asked)) => Box::pin(store::rebuild(asked.place)).await,
        Command::Store(Store::Verify(asked)) => Box::pin(store::verify(asked.place)).await,
    }
}

/// The token of FIST_TOKEN. Not an argument: those can be read by every user of the machine.
fn token() -> Option<String> {
    service::config::process_env()
        .find(|(name, _)| name == "FIST_TOKEN")
        .map(|(_, value)| value)
}

/// `KIND/ID` as one word, or in two.
fn kind_and_id(kind: &str, id: Option<&str>) -> Result<(String, Option<String>), Failure> {
    match (kind.split_once('/'), id) {
        (None, id) => Ok((kind.to_owned(), id.map(str::to_owned))),
        (Some((kind, id)), None) if !id.is_empty() => Ok((kind.to_owned(), Some(id.to_owned()))),
        (Some(_), _) => Err(Failure::misuse(format!(
            "`{kind}`: write KIND ID or KIND/ID, not both"
        ))),
    }
}

/// `KEY=VALUE` arguments, each key once.
fn pairs<'a>(option: &str, given: &'a [String]) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for text in given {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Failure::misuse(format!("{option} {text}: write it as KEY=VALUE")));
        };
        if pairs.iter().any(|(other, _)| *other == key) {
            return Err(Failure::misuse(format!(
                "{option} {key} is given twice: which one holds?"
            )));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_and_ids_come_in_one_word_or_two() {
        assert_eq!(
            kind_and_id("wf", Some("a")).unwrap(),
            ("wf".to_owned(), Some("a".to_owned()))
        );
        assert_eq!(
            kind_and_id("wf/a", None).unwrap(),
            ("wf".to_owned(), Some("a".to_owned()))
        );
        assert_eq!(kind_and_id("wf", None).unwrap(), ("wf".to_owned(), None));
        assert!(kind_and_id("wf/a", Some("b")).is_err());
        assert!(kind_and_id("wf/", None).is_err());
    }

    #[test]
    fn pairs_are_taken_as_they_stand() {
        let given = ["a.b=c=d".to_owned(), "e=".to_owned()];
        assert_eq!(pairs("--data", &given).unwrap(), [("a.b", "c=d"), ("e", "")]);
        for bad in [
            vec!["x".to_owned()],
            vec!["=x".to_owned()],
            vec!["a=1".to_owned(), "a=2".to_owned()],
        ] {
            assert_eq!(pairs("--data", &bad).unwrap_err().code, Code::Misuse, "{bad:?}");
        }
    }
}
