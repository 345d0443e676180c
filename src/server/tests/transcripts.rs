//! tests/golden/http.txt, line by line.

use std::fmt::Write as _;

use super::world::{Client, World};

const GOLDEN: &str = include_str!("../../../tests/golden/http.txt");

/// One request as it is sent, and all that is expected back.
#[derive(Debug)]
struct Exchange {
    line: usize,
    sent: String,
    expected: String,
}

#[derive(Debug)]
struct Transcript {
    title: String,
    exchanges: Vec<Exchange>,
}

fn read() -> Vec<Transcript> {
    let mut transcripts: Vec<Transcript> = Vec::new();
    for (number, line) in GOLDEN.lines().enumerate() {
        let number = number + 1;
        if let Some(title) = line.strip_prefix("## ") {
            transcripts.push(Transcript { title: title.to_owned(), exchanges: Vec::new() });
            continue;
        }
        let Some(transcript) = transcripts.last_mut() else { continue };
        let text = |mark| line.strip_prefix(mark).map(|rest: &str| rest.strip_prefix(' ').unwrap_or(rest));
        if let Some(text) = text('>') {
            let starts = transcript.exchanges.last().is_none_or(|exchange| !exchange.expected.is_empty());
            if starts {
                transcript.exchanges.push(Exchange { line: number, sent: String::new(), expected: String::new() });
            }
            let exchange = transcript.exchanges.last_mut().expect("pushed above");
            // Every head line ends with CRLF; the lines of a body are joined by it.
            let in_body = exchange.sent.contains("\r\n\r\n");
            let joined = if in_body && !exchange.sent.ends_with("\r\n\r\n") { "\r\n" } else { "" };
            let ended = if in_body { "" } else { "\r\n" };
            write!(exchange.sent, "{joined}{text}{ended}").expect("a String");
        } else if let Some(text) = text('<') {
            let exchange = transcript.exchanges.last_mut().unwrap_or_else(|| panic!("line {number}: nothing sent"));
            writeln!(exchange.expected, "{text}").expect("a String");
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "line {number} is neither");
        }
    }
    transcripts
}

/// Every entity tag of ours by its first appearance, so that transcripts can name it.
#[derive(Default)]
struct Tags(Vec<String>);

impl Tags {
    fn put_names(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
            let run: String = rest[at..].chars().take_while(char::is_ascii_hexdigit).collect();
            out.push_str(&rest[..at]);
            rest = &rest[at + run.len()..];
            if run.len() == 16 {
                let known = self.0.iter().position(|tag| *tag == run).unwrap_or_else(|| {
                    self.0.push(run);
                    self.0.len() - 1
                });
                write!(out, "<v{}>", known + 1).expect("a String");
            } else {
                out.push_str(&run);
            }
        }
        out + rest
    }

    fn put_values(&self, text: &str) -> String {
        self.0.iter().enumerate().fold(text.to_owned(), |text, (i, tag)| text.replace(&format!("<v{}>", i + 1), tag))
    }
}

async fn received(client: &mut Client, sent: &str, tags: &mut Tags) -> String {
    let mut out = String::new();
    let to_head = sent.starts_with("HEAD ");
    let mut answers = 0;
    // As many answers as requests were sent (a 100 is not one), or until the server closes.
    while answers < sent.matches(" HTTP/1.").count() {
        let Some(mut answer) = client.answer(to_head).await else {
            out.push_str("closed\n");
            break;
        };
        answers += usize::from(answer.status != 100);
        writeln!(out, "{}", answer.status).expect("a String");
        answer.headers.sort();
        for (name, value) in &answer.headers {
            match name.as_str() {
                "date" => assert!(value.ends_with(" GMT"), "{value}"),
                // When is the scheduler's to say.
                "last-modified" if value.contains("2024") => writeln!(out, "{name}: <now>").expect("a String"),
                _ => writeln!(out, "{name}: {value}").expect("a String"),
            }
        }
        let has_date = answer.header("date").is_some();
        let by_the_parser = answer.status == 100 || answer.header("content-type").is_none() && answer.status == 400;
        assert!(has_date || by_the_parser || answer.status == 431, "an answer of ours without a Date: {answer:?}");
        if !answer.body.is_empty() {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            writeln!(out, "\n{}", body.trim_end()).expect("a String");
        }
        // Said so, or known from the version of the protocol.
        if answer.header("connection") == Some("close") || sent.contains(" HTTP/1.0") {
            assert!(client.is_closed().await, "the server closes as it should");
            out.push_str("closed\n");
            break;
        }
    }
    tags.put_names(&out)
}

#[test]
fn every_transcript_is_answered_as_written() {
    let transcripts = read();
    assert!(transcripts.len() > 20, "the file was read");
    let mut failures = String::new();
    for transcript in &transcripts {
        for seed in 0..4 {
            let world = World::new(seed);
            let mut tags = Tags::default();
            // One byte a read for every other seed: the answers must not depend on how the bytes arrive.
            let connect = || world.connect_slow(if seed % 2 == 0 { usize::MAX } else { 1 });
            let mut client = connect();
            for exchange in &transcript.exchanges {
                let sent = tags.put_values(&exchange.sent).replace("<long>", &"x".repeat(70_000));
                let got = world.sim.block_on(async {
                    if !client.send(&sent).await {
                        client = connect();
                        client.send(&sent).await;
                    }
                    received(&mut client, &sent, &mut tags).await
                });
                if got != exchange.expected {
                    let (title, line) = (&transcript.title, exchange.line);
                    let indented = |text: &str| text.lines().map(|l| format!("< {l}\n")).collect::<String>();
                    let (got, expected) = (indented(&got), indented(&exchange.expected));
                    writeln!(failures, "{title}, line {line}, seed {seed}:\n{got}-- expected:\n{expected}")
                        .expect("a String");
                }
                if got.ends_with("closed\n") {
                    client = connect();
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
