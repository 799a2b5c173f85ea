//! Certificates for the tests of TLS: an authority, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use tempfile::TempDir;

use super::{ports, temp};

/// An authority. Its files lie in a directory that lasts as long as it does.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
    dir: TempDir,
}

/// The files of a certificate and its key.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = new_key();
        let mut builder = builder(name, name, &key);
        let is_authority = BasicConstraints::new().critical().ca().build().expect("an extension");
        builder.append_extension(is_authority).expect("an extension");
        builder.sign(&key, MessageDigest::sha256()).expect("sign");
        let authority = Authority {
            certificate: builder.build(),
            key,
            dir: temp::dir("certificates"),
        };
        let pem = authority.certificate.to_pem().expect("PEM");
        fs::write(authority.file(), pem).expect("write a certificate");
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Signs a certificate for 127.0.0.1, localhost and the other address of this machine. Files of
    /// this name are replaced.
    pub fn issue(&self, name: &str) -> Pair {
        self.issue_locked(name, None)
    }

    /// The same, with a passphrase for the key.
    pub fn issue_locked(&self, name: &str, passphrase: Option<&str>) -> Pair {
        let key = new_key();
        let issuer = self.certificate.subject_name();
        let mut builder = builder(name, name, &key);
        builder.set_issuer_name(issuer).expect("an issuer");
        let mut names = SubjectAlternativeName::new();
        names.ip("127.0.0.1").dns("localhost");
        if let Some(address) = ports::other_address() {
            names.ip(&address.to_string());
        }
        let names = names.build(&builder.x509v3_context(Some(&self.certificate), None));
        builder
            .append_extension(names.expect("an extension"))
            .expect("an extension");
        builder.sign(&self.key, MessageDigest::sha256()).expect("sign");
        let pair = Pair {
            certificate: self.dir.path().join(format!("{name}.pem")),
            key: self.dir.path().join(format!("{name}.key")),
        };
        let pem = match passphrase {
            None => key.private_key_to_pem_pkcs8(),
            Some(pass) => key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), pass.as_bytes()),
        };
        fs::write(&pair.key, pem.expect("PEM")).expect("write a key");
        fs::write(&pair.certificate, builder.build().to_pem().expect("PEM")).expect("write a certificate");
        pair
    }

    /// The client's side of a connection that trusts this authority.
    pub fn client(&self, own: Option<&Pair>) -> Ssl {
        self.client_of(own, None)
    }

    /// The same, of one version of TLS only.
    pub fn client_of(&self, own: Option<&Pair>, version: Option<SslVersion>) -> Ssl {
        to_loopback(&self.context(own, version).build())
    }

    /// What the client's sides of several connections share.
    pub fn context(&self, own: Option<&Pair>, version: Option<SslVersion>) -> SslContextBuilder {
        let mut builder = SslContext::builder(SslMethod::tls_client()).expect("a context");
        builder.set_ca_file(self.file()).expect("the authority");
        builder.set_verify(SslVerifyMode::PEER);
        builder.set_min_proto_version(version).expect("a version");
        builder.set_max_proto_version(version).expect("a version");
        // Old versions are used with this level only.
        builder.set_security_level(0);
        if let Some(own) = own {
            builder
                .set_certificate_chain_file(&own.certificate)
                .expect("a certificate");
            let key = PKey::private_key_from_pem(&fs::read(&own.key).expect("a key")).expect("a key");
            builder.set_private_key(&key).expect("a key");
        }
        builder
    }
}

/// The client's side of a connection to 127.0.0.1.
pub fn to_loopback(context: &SslContext) -> Ssl {
    let mut ssl = Ssl::new(context).expect("a client");
    ssl.param_mut().set_ip([127, 0, 0, 1].into()).expect("an address");
    ssl
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let key = EcKey::generate(&group).expect("a key");
    PKey::from_ec_key(key).expect("a key")
}

fn builder(subject: &str, issuer: &str, key: &PKey<Private>) -> X509Builder {
    let name = |text: &str| {
        let mut name = X509NameBuilder::new().expect("a name");
        name.append_entry_by_text("CN", text).expect("a name");
        name.build()
    };
    let mut builder = X509Builder::new().expect("a certificate");
    builder.set_version(2).expect("version 3");
    let mut serial = BigNum::new().expect("a number");
    serial
        .rand(120, openssl::bn::MsbOption::MAYBE_ZERO, false)
        .expect("a number");
    let serial = serial.to_asn1_integer().expect("a number");
    builder.set_serial_number(&serial).expect("a serial number");
    builder.set_subject_name(&name(subject)).expect("a name");
    builder.set_issuer_name(&name(issuer)).expect("a name");
    builder.set_pubkey(key).expect("a key");
    let (now, later) = (Asn1Time::days_from_now(0), Asn1Time::days_from_now(2));
    builder.set_not_before(&now.expect("a time")).expect("a time");
    builder.set_not_after(&later.expect("a time")).expect("a time");
    builder
}
