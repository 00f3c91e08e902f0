//! What a name server says, in the words of DNS itself, and what is known without one.

use std::net::{Ipv4Addr, SocketAddr};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig},
    proto::{
        op::{Message, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, CNAME, SRV},
        },
    },
};
use tokio::net::UdpSocket;

use super::{Names, Service};

/// A name server on this machine, and what asks it.
async fn name_server() -> (Names, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    #[expect(
        clippy::disallowed_methods,
        reason = "a test has no `Tasks` for others"
    )]
    let task = tokio::spawn(async move {
        let mut packet = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let asked = Message::from_vec(&packet[..length]).expect("a message");
            let answer = answer(&asked).to_vec().expect("a message");
            let _sent = socket.send_to(&answer, from).await;
        }
    });
    let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
    connection.port = address.port();
    let server = NameServerConfig::new(address.ip(), true, vec![connection]);
    let names = Names::of_servers(vec![server]).expect("a resolver");
    (names, task)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn answer(asked: &Message) -> Message {
    let query = asked.queries.first().expect("a query").clone();
    let text = query.name.to_ascii();
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
    let service = |priority, target| RData::SRV(SRV::new(priority, 5, 8449, name(target)));
    let records = match (text.as_str(), query.query_type) {
        ("a.example.", RecordType::A) => vec![("a.example.", address)],
        ("alias.example.", RecordType::A) => vec![
            ("alias.example.", RData::CNAME(CNAME(name("a.example.")))),
            ("a.example.", address),
        ],
        ("_matrix-fed._tcp.a.example.", RecordType::SRV) => vec![
            (text.as_str(), service(10, "m1.example.")),
            (text.as_str(), service(20, ".")),
        ],
        ("_matrix-fed._tcp.broken.example.", _) => {
            answer.metadata.response_code = ResponseCode::ServFail;
            Vec::new()
        }
        ("a.example.", _) => Vec::new(),
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
    };
    for (owner, data) in records {
        answer.add_answer(Record::from_rdata(name(owner), 60, data));
    }
    answer.add_query(query);
    answer
}

#[tokio::test]
async fn addresses_and_services_come_from_dns() {
    let (names, task) = name_server().await;
    let expected: SocketAddr = "192.0.2.1:443".parse().expect("an address");
    for host in ["a.example", "alias.example"] {
        let found = names.addresses(host, 443).await.expect("addresses");
        assert_eq!(found, [expected], "{host}");
    }
    names
        .addresses("nowhere.example", 443)
        .await
        .expect_err("there is no such name");
    let mut found = names
        .services("_matrix-fed._tcp.a.example")
        .await
        .expect("services");
    found.sort();
    let service = |priority, host: &str| Service {
        priority,
        weight: 5,
        host: host.into(),
        port: 8449,
    };
    assert_eq!(found, [service(10, "m1.example"), service(20, "")]);
    let none = names.services("_matrix._tcp.a.example").await;
    assert_eq!(none.expect("an answer"), []);
    names
        .services("_matrix-fed._tcp.broken.example")
        .await
        .expect_err("the name server is broken");
    task.abort();
}

#[tokio::test]
async fn without_name_servers_nothing_hangs() {
    let names = Names::of_servers(Vec::new()).expect("a resolver");
    names
        .addresses("a.example", 443)
        .await
        .expect_err("nobody knows");
    names
        .services("_matrix-fed._tcp.a.example")
        .await
        .expect_err("nobody knows");
}
