//! The nearest valid name to one that is not valid: an error that says it saves a trip to the
//! documentation.

/// At most so many candidates are listed in an error.
const LISTED_MAX: usize = 20;

/// The candidate that `name` was surely meant to be, if there is one.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let wanted = plain(name);
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&wanted, &plain(candidate)), candidate))
        .filter(|(score, _)| *score >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?` where something is near, else the list of what there is.
pub(crate) fn did_you_mean(name: &str, what: &str, candidates: &[&str]) -> String {
    if let Some(near) = nearest(name, candidates.iter().copied()) {
        return format!("did you mean \"{near}\"?");
    }
    if candidates.is_empty() {
        return format!("there are no {what}");
    }
    let listed: Vec<&str> = candidates.iter().copied().take(LISTED_MAX).collect();
    let more = if candidates.len() > LISTED_MAX {
        ", …"
    } else {
        ""
    };
    format!("{what}: {}{more}", listed.join(", "))
}
