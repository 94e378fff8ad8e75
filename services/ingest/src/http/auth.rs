//! Who may ask: bearer tokens of the API, and what each webhook's sender must prove.
//!
//! Invariant: secrets are compared in a time that does not depend on how much of them is right.

use axum::http::{HeaderMap, header};
use hmac::{Hmac, KeyInit, Mac};
use service::config::{Secret, Source};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;

/// Checks the token of an API request; without tokens in the configuration the API is open.
///
/// # Errors
/// 401.
pub fn api(headers: &HeaderMap, tokens: &[Secret]) -> Result<(), Problem> {
    if tokens.is_empty() {
        return Ok(());
    }
    let remedy = "send `Authorization: Bearer TOKEN` with one of the tokens that `http.tokens` names";
    match bearer(headers) {
        None => Err(Problem::unauthorized(
            format!("this API asks for a token: {remedy}"),
            "Bearer",
        )),
        // Every token is looked at, so that the time does not tell which one was nearly right.
        Some(given)
            if tokens
                .iter()
                .fold(false, |found, token| found | is_same(given, token.expose())) =>
        {
            Ok(())
        }
        Some(_) => Err(Problem::unauthorized(
            format!("this token is not known: {remedy}"),
            "Bearer error=\"invalid_token\"",
        )),
    }
}

/// Checks what the sender of a webhook must prove: every secret that its source has.
///
/// # Errors
/// 401.
pub fn webhook(headers: &HeaderMap, body: &[u8], name: &str, source: &Source) -> Result<(), Problem> {
    if let Some(token) = &source.bearer_token {
        let is_right = bearer(headers).is_some_and(|given| is_same(given, token.expose()));
        if !is_right {
            return Err(Problem::unauthorized(
                format!(
                    "source {name} asks for its token: send `Authorization: Bearer TOKEN` with `sources.{name}.bearer_token`"
                ),
                "Bearer",
            ));
        }
    }
    if let Some(secret) = &source.hmac_secret {
        let header = source.hmac_header.as_str();
        let signature = headers.get(header).and_then(|value| value.to_str().ok());
        if !signature.is_some_and(|signature| is_signed(body, signature, secret)) {
            return Err(Problem::unauthorized(
                format!(
                    "source {name} asks for a signature: send {header} with the body's HMAC-SHA256 under `sources.{name}.hmac_secret`, in hexadecimal"
                ),
                "HMAC-SHA256",
            ));
        }
    }
    Ok(())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares hashes, so that the length is not told either.
fn is_same(given: &str, expected: &str) -> bool {
    let (given, expected) = (
        Sha256::digest(given.as_bytes()),
        Sha256::digest(expected.as_bytes()),
    );
    given.as_slice().ct_eq(expected.as_slice()).into()
}

fn is_signed(body: &[u8], signature: &str, secret: &Secret) -> bool {
    let digits = signature.trim();
    let digits = digits.strip_prefix("sha256=").unwrap_or(digits);
    let Some(signature) = from_hex(digits) else {
        return false;
    };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return false;
    };
    mac.update(body);
    mac.verify_slice(&signature).is_ok()
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || digits.len() != 64 {
        return None;
    }
    let pairs = (0..digits.len())
        .step_by(2)
        .map(|index| digits.get(index..index + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn tokens_of_the_api() {
        let tokens = [Secret::new("first"), Secret::new("second")];
        let given = |value| api(&headers("authorization", value), &tokens);
        assert!(api(&HeaderMap::new(), &[]).is_ok());
        assert!(api(&HeaderMap::new(), &tokens).is_err());
        for good in ["Bearer first", "bearer second"] {
            assert!(given(good).is_ok(), "{good}");
        }
        for bad in [
            "Bearer third",
            "Bearer",
            "Bearer ",
            "Basic first",
            "first",
            "Bearer firs",
            "Bearer first2",
        ] {
            let problem = given(bad).unwrap_err();
            assert_eq!(problem.status(), 401, "{bad}");
            assert!(!problem.detail().contains("second"), "{}", problem.detail());
        }
    }

    #[test]
    fn signatures() {
        // RFC 4231, test case 2.
        let secret = Secret::new("Jefe");
        let body = b"what do ya want for nothing?";
        let right = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        for good in [right.to_owned(), format!("sha256={right}"), right.to_uppercase()] {
            assert!(is_signed(body, &good, &secret), "{good}");
        }
        for bad in [
            "",
            "sha256=",
            &right[2..],
            &right.replace('5', "6"),
            "zz",
            &"ä".repeat(32),
        ] {
            assert!(!is_signed(body, bad, &secret), "{bad}");
        }
        assert!(!is_signed(b"something else", right, &secret));
    }
}
