use super::super::handshake::tests::GREETING;
use super::super::own::MonitorChoice;
use super::super::reader::read_all;
use super::super::wire::command;
use super::*;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

const LARGE: usize = 1 << 20;

/// A connection, and the peer after the handshake.
fn connected(timeout: Duration) -> (Arc<Connection>, UnixStream) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let hello = thread::spawn(move || {
        peer.write_all(GREETING).unwrap();
        take(&mut peer, command("qmp_capabilities").len());
        peer.write_all(b"{\"return\":{}}\n").unwrap();
        peer
    });
    let socket = OwnedFd::from(ours).into();
    let greeted = Greeted::on(socket, Instant::now() + timeout, timeout).unwrap();
    let options = MonitorOptions {
        timeout,
        pipelining: true,
        reconnect: false,
        choice: MonitorChoice::Given,
        idle: None,
    };
    let (connection, lines) = Connection::new(greeted, &options, 0).unwrap();
    let read = connection.clone();
    thread::spawn(move || read_all(&read, lines, |_| {}));
    (connection, hello.join().unwrap())
}

fn take(peer: &mut UnixStream, bytes: usize) {
    peer.read_exact(&mut vec![0; bytes]).unwrap();
}

fn send(connection: &Arc<Connection>) -> Result<Pending, Error> {
    connection.send(b"{}", Instant::now() + connection.timeout)
}

#[test]
fn whoever_waits_for_a_reply_sends_the_rest_of_the_request() {
    for (step, pause) in [(LARGE, 200), (LARGE / 32, 10)] {
        let (connection, mut peer) = connected(Duration::from_secs(20));
        let pending = connection.try_send(&vec![b' '; LARGE]).unwrap();
        assert!(pending.cut_off);
        let answers = thread::spawn(move || {
            for _ in 0..LARGE / step {
                thread::sleep(Duration::from_millis(pause));
                take(&mut peer, step);
            }
            peer.write_all(b"{\"return\":1}\n").unwrap();
            peer
        });
        assert_eq!(pending.wait().unwrap().json.as_ref(), "1");
        answers.join().unwrap();
    }
}

#[test]
fn a_peer_that_does_not_read_ends_the_wait_and_is_told_the_rest_later() {
    let timeout = Duration::from_millis(300);
    let (connection, mut peer) = connected(timeout);
    let start = Instant::now();
    let pending = connection.try_send(&vec![b' '; LARGE]).unwrap();
    assert!(matches!(pending.wait(), Err(Error::Timeout(_))));
    assert!(start.elapsed() >= timeout && start.elapsed() < 10 * timeout);
    assert!(matches!(send(&connection), Err(Error::Stalled)));
    let answers = thread::spawn(move || {
        take(&mut peer, LARGE);
        peer.write_all(b"{\"return\":\"late\"}\n").unwrap();
        take(&mut peer, 2);
        peer.write_all(b"{\"return\":2}\n").unwrap();
        peer
    });
    let pending = loop {
        assert!(start.elapsed() < Duration::from_secs(20));
        match send(&connection) {
            Err(Error::Stalled) => thread::sleep(Duration::from_millis(1)),
            sent => break sent.unwrap(),
        }
    };
    assert_eq!(pending.wait().unwrap().json.as_ref(), "2");
    answers.join().unwrap();
}

#[test]
fn a_reply_is_not_kept_from_its_waiter_by_the_rest_of_a_later_request() {
    let (connection, mut peer) = connected(Duration::from_secs(20));
    let start = Instant::now();
    let first = send(&connection).unwrap();
    let later = connection.try_send(&vec![b' '; LARGE]).unwrap();
    peer.write_all(b"{\"return\":1}\n").unwrap();
    assert_eq!(first.wait().unwrap().json.as_ref(), "1");
    let ends = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(peer);
    });
    assert!(matches!(later.wait(), Err(Error::Closed(_))));
    assert!(start.elapsed() < Duration::from_secs(10));
    ends.join().unwrap();
}
