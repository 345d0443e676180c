//! What holds for every path: methods, origins, bodies, bounds, start and stop.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use admin::{AdminError, AdminServer, Limits};

use crate::client::{Door, JSON, last, next};

const PURGE: &str = r#"{"namespace": "n", "key": "k"}"#;

#[test]
fn unknown_paths_and_methods_are_problems() {
    let door = Door::open();
    for path in ["/nothing", "/v1/policy/", "/v1", "/V1/stats", "//healthz"] {
        door.get(path).problem(404, "no-such-path");
    }
    let reply = door.ask("POST", "/v1/policy", &[JSON], "{}");
    reply.problem(405, "method");
    assert_eq!(reply.header("allow"), Some("GET, PUT, PATCH, HEAD, OPTIONS"));
    let reply = door.ask("GET", "/v1/purge", &[], "");
    reply.problem(405, "method");
    assert_eq!(reply.header("allow"), Some("POST, OPTIONS"));
    let reply = door.ask("OPTIONS", "/v1/policy", &[], "");
    assert_eq!((reply.status, reply.header("allow")), (204, Some("GET, PUT, PATCH, HEAD, OPTIONS")));
    assert_eq!(reply.header("accept-patch"), Some("application/merge-patch+json, application/json"));
    assert_eq!(door.get("/healthz?verbose=1").status, 200, "a query does not change the path");
}

#[test]
fn head_is_get_without_the_body() {
    let door = Door::open();
    for path in ["/", "/healthz", "/readyz", "/v1/policy", "/v1/stats", "/v1/config", "/metrics", "/openapi.json"] {
        let (get, head) = (door.get(path), door.ask("HEAD", path, &[], ""));
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        for name in ["content-type", "content-length", "etag"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
        assert_eq!(get.header("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn a_page_of_another_origin_may_not_write() {
    let door = Door::open();
    let own = format!("Origin: http://{}", door.running.local_addr());
    let writes = [("PUT", "/v1/policy", "{}"), ("PATCH", "/v1/policy", "{}"), ("POST", "/v1/purge", PURGE)];
    for (method, path, body) in writes {
        for origin in ["Origin: http://evil.example", "Origin: null", "Origin: http://127.0.0.1:1"] {
            door.ask(method, path, &[JSON, origin], body).problem(403, "cross-origin");
        }
        assert!(door.control.purged.lock().unwrap().is_empty());
        assert_eq!(door.ask(method, path, &[JSON, &own], body).status, 200);
    }
    assert_eq!(door.ask("GET", "/v1/stats", &["Origin: http://evil.example"], "").status, 200);
    assert_eq!(door.control.policy.lock().unwrap().version, 9);
}

#[test]
fn a_body_must_say_that_it_is_json() {
    let door = Door::open();
    for (method, path) in [("PUT", "/v1/policy"), ("PATCH", "/v1/policy"), ("POST", "/v1/purge")] {
        for header in ["Content-Type: text/plain", "X-Other: 1", "Content-Type: multipart/form-data"] {
            let problem = door.ask(method, path, &[header], "{}").problem(415, "content-type");
            assert!(problem["detail"].as_str().unwrap().contains("application/json"));
        }
    }
    door.ask("PUT", "/v1/policy", &["Content-Type: application/merge-patch+json"], "{}").problem(415, "content-type");
    let charset = "Content-Type: application/json; charset=utf-8";
    assert_eq!(door.ask("PUT", "/v1/policy", &[charset], "{}").status, 200);
}

#[test]
fn a_body_beyond_its_bound_is_refused_announced_or_not() {
    let door = Door::open();
    for (method, path, max) in
        [("PUT", "/v1/policy", 1 << 20), ("PATCH", "/v1/policy", 1 << 20), ("POST", "/v1/purge", 32 << 10)]
    {
        let body = format!("{{\"x\":\"{}\"}}", "y".repeat(max));
        assert_eq!(door.ask(method, path, &[JSON], &body).problem(413, "body-max")["max_bytes"], max);

        let mut stream = door.connect();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for chunk in body.as_bytes().chunks(64 << 10) {
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).unwrap();
            stream.write_all(chunk).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        next(&mut stream).problem(413, "body-max");
    }
    let spaces = format!("{}{{}}", " ".repeat((1 << 20) - 2));
    assert_eq!(door.ask("PUT", "/v1/policy", &[JSON], &spaces).status, 200, "the bound itself is within");
}

#[test]
fn expect_continue_is_honoured_and_refused_without_the_body() {
    let door = Door::open();
    let head = |length: usize| {
        format!(
            "PUT /v1/policy HTTP/1.1\r\nHost: x\r\n{JSON}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut stream = door.connect();
    stream.write_all(head(2).as_bytes()).unwrap();
    assert_eq!(next(&mut stream).status, 100);
    stream.write_all(b"{}").unwrap();
    assert_eq!(next(&mut stream).status, 200);

    let mut stream = door.connect();
    stream.write_all(head(9 << 20).as_bytes()).unwrap();
    let reply = last(&mut stream);
    reply.problem(413, "body-max");
    assert_eq!(reply.header("connection"), Some("close"));
}

#[test]
fn a_kept_alive_connection_survives_refusals() {
    let door = Door::open();
    let mut stream = door.connect();
    let put = |content_type: &str, body: &str| {
        let length = body.len();
        format!("PUT /v1/policy HTTP/1.1\r\nHost: x\r\n{content_type}\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    for (request, status) in [
        (put("Content-Type: text/plain", "hello"), 415),
        (put(JSON, "{"), 400),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404),
        ("HEAD /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        let reply = if request.starts_with("HEAD") {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            String::from_utf8(head).unwrap()[9..12].parse().unwrap()
        } else {
            next(&mut stream).status
        };
        assert_eq!(reply, status, "{request}");
    }
    stream.write_all(put(JSON, "{}").as_bytes()).unwrap();
    assert_eq!(next(&mut stream).status, 200);
}

#[test]
fn garbage_is_answered_and_closed() {
    let door = Door::open();
    let long = format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(17 << 10));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65));
    for (bytes, status) in [("nonsense\r\n\r\n", 400), (long.as_str(), 431), (many.as_str(), 431)] {
        let mut stream = door.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        assert_eq!(next(&mut stream).status, status);
    }
    assert_eq!(door.get("/healthz").status, 200);
}

/// Bounds short enough to run into.
fn tiny() -> Limits {
    Limits {
        connections_max: 3,
        head_timeout: Duration::from_secs(20),
        body_timeout: Duration::from_millis(200),
        answer_timeout: Duration::from_millis(200),
        stall_timeout: Duration::from_millis(200),
        shutdown_timeout: Duration::from_millis(500),
    }
}

#[test]
fn slow_peers_are_given_up() {
    let door = Door::open_with(Limits { connections_max: 64, head_timeout: Duration::from_secs(1), ..tiny() });
    let ends = |stream: &mut TcpStream| {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => String::from_utf8(rest).unwrap(),
            Err(error) => panic!("the connection stays open: {error}"),
        }
    };
    let mut silent = door.connect();
    let mut halfway = door.connect();
    halfway.write_all(b"GET /healthz HTTP/1.1\r\nHos").unwrap();
    let mut idle = door.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(next(&mut idle).status, 200);
    let mut starving = door.connect();
    let head = format!("PUT /v1/policy HTTP/1.1\r\nHost: x\r\n{JSON}\r\nContent-Length: 10\r\n\r\n{{");
    starving.write_all(head.as_bytes()).unwrap();
    last(&mut starving).problem(408, "timeout");
    assert_eq!(ends(&mut silent), "");
    ends(&mut halfway);
    assert_eq!(ends(&mut idle), "");
    assert_eq!(door.control.policy.lock().unwrap().version, 7);
}

#[test]
fn a_peer_that_takes_no_answer_frees_its_place() {
    let door = Door::open_with(tiny());
    let mut deaf: Vec<TcpStream> = (0..3).map(|_| door.connect()).collect();
    // Pipelined requests whose answers fill every buffer on the way, until the door reads no more.
    let request = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    for stream in &mut deaf {
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        for _ in 0..50 {
            match stream.write_all(request.as_bytes()) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => break,
            }
        }
    }
    let started = Instant::now();
    loop {
        let mut stream = door.connect();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        match last(&mut stream).status {
            200 => break,
            _ => assert!(started.elapsed() < Duration::from_secs(15), "the places stay taken"),
        }
    }
}

#[test]
fn a_node_that_stalls_does_not_stall_the_door() {
    let door = Door::open_with(tiny());
    door.control.stalled.store(true, SeqCst);
    for (method, path, body) in [
        ("GET", "/v1/stats", ""),
        ("GET", "/metrics", ""),
        ("PUT", "/v1/policy", "{}"),
        ("PATCH", "/v1/policy", "{}"),
        ("POST", "/v1/purge", PURGE),
    ] {
        let problem = door.ask(method, path, &[JSON], body).problem(503, "timeout");
        assert!(problem["detail"].as_str().unwrap().contains("200 ms"));
    }
    assert_eq!(door.get("/readyz").status, 200);
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let door = Door::open_with(tiny());
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut held: Vec<TcpStream> = (0..3).map(|_| door.connect()).collect();
    for stream in &mut held {
        stream.write_all(request).unwrap();
        assert_eq!(next(stream).status, 200);
    }
    let mut fourth = door.connect();
    fourth.write_all(request).unwrap();
    let refused = last(&mut fourth);
    refused.problem(503, "overload");
    assert_eq!(refused.header("connection"), Some("close"));
    held.pop();
    let started = Instant::now();
    loop {
        let mut stream = door.connect();
        stream.write_all(request).unwrap();
        if next(&mut stream).status == 200 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "the place is not given back");
    }
}

#[test]
fn a_port_in_use_names_the_setting() {
    let door = Door::open();
    let addr = door.running.local_addr();
    let error = AdminServer::bind(addr).unwrap_err();
    assert!(matches!(error, AdminError::Bind { .. }));
    let text = error.to_string();
    for part in ["admin_listen", &addr.to_string(), "another process"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn stop_finishes_what_is_under_way_and_closes_the_rest() {
    let door = Door::open_with(Limits { shutdown_timeout: Duration::from_secs(15), ..Limits::default() });
    let mut idle = door.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(next(&mut idle).status, 200);
    let mut busy = door.connect();
    let head = "PUT /v1/policy HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n";
    busy.write_all(format!("{head}{JSON}\r\nContent-Length: 2\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(next(&mut busy).status, 100, "the handler waits for the body");
    let addr = door.running.local_addr();
    let running = door.running;
    let stopping = thread::spawn(move || running.stop());
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "the idle connection is closed");
    busy.write_all(b"{}").unwrap();
    assert_eq!(last(&mut busy).status, 200);
    stopping.join().unwrap().unwrap();
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
    assert_eq!(door.control.policy.lock().unwrap().version, 8);
}

#[test]
fn stop_cuts_what_does_not_end() {
    let door = Door::open_with(Limits { answer_timeout: Duration::from_secs(60), ..tiny() });
    door.control.stalled.store(true, SeqCst);
    let mut stuck = door.connect();
    stuck.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(door.get("/healthz").status, 200, "the door took both connections");
    let started = Instant::now();
    door.running.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10));
    let mut rest = Vec::new();
    let _ = stuck.read_to_end(&mut rest);
    assert!(rest.is_empty());
}
