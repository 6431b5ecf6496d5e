//! Certificates: made for a demonstration, or loaded from the user's PEM files, and turned into
//! TLS configurations that speak 1.3 only and want a certificate from both ends.
//!
//! One authority signs everybody. Its key is made in [`Demo::new`] and gone when that returns:
//! nobody can sign a further certificate for a running demonstration.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Who may take part, and who we are.
pub struct Credentials {
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// How an error names them.
    name: String,
}

/// Where the PEM files of one party lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authorities that are trusted.
    pub ca: PathBuf,
    /// Own certificate, followed by intermediates if there are any.
    pub cert: PathBuf,
    /// Private key of the first certificate in `cert`; PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

impl Files {
    /// The files [`Demo::write`] made for `party`.
    pub fn of(dir: &Path, party: &str) -> Self {
        Self {
            ca: dir.join("ca.pem"),
            cert: dir.join(format!("{party}.pem")),
            key: dir.join(format!("{party}.key")),
        }
    }

    /// Reads them. An error is one sentence that names the file and the remedy.
    pub fn load(&self) -> Result<Credentials> {
        Ok(Credentials {
            authorities: certificates(&self.ca)?,
            chain: certificates(&self.cert)?,
            key: private_key(&self.key)?,
            name: format!("{} and {}", self.cert.display(), self.key.display()),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certs| certs.collect());
    match found {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) | Err(pem::Error::NoItemsFound) => bail!(
            "{}: holds no certificate; give a PEM file with a BEGIN CERTIFICATE block",
            path.display()
        ),
        Err(e) => Err(unreadable(path, &e)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    match PrivateKeyDer::from_pem_file(path) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => bail!(
            "{}: holds no private key; give a PEM file with a BEGIN PRIVATE KEY block",
            path.display()
        ),
        Err(e) => Err(unreadable(path, &e)),
    }
}

fn unreadable(path: &Path, e: &pem::Error) -> anyhow::Error {
    match e {
        pem::Error::Io(io) => anyhow::anyhow!(
            "{}: cannot be read ({io}); give the path of a PEM file",
            path.display()
        ),
        other => anyhow::anyhow!(
            "{}: is not PEM ({other}); convert it with `openssl x509` or `openssl pkey`",
            path.display()
        ),
    }
}

impl Credentials {
    /// For the end that connects: TLS 1.3, checks the server, shows its own certificate.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .context("TLS 1.3 is missing from this build")?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .with_context(|| self.mismatch())?;
        Ok(Arc::new(config))
    }

    /// For the end that listens: TLS 1.3, and no handshake without a certificate of the authority.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .build()
                .with_context(|| format!("{}: no authority to trust", self.name))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .context("TLS 1.3 is missing from this build")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .with_context(|| self.mismatch())?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots.add(authority.clone()).with_context(|| {
                format!("{}: the certificate of its authority is damaged", self.name)
            })?;
        }
        Ok(roots)
    }

    fn mismatch(&self) -> String {
        format!(
            "{}: certificate and key do not belong together; give a pair",
            self.name
        )
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// 128 bits from the system's generator, in hexadecimal.
pub(crate) fn secret() -> Result<String> {
    let mut bytes = [0; 16];
    provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers to give"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// An authority that existed for a moment and the certificates it left.
pub struct Demo {
    ca_pem: String,
    parties: Vec<Party>,
}

struct Party {
    name: &'static str,
    cert_pem: String,
    key_pem: String,
}

impl Demo {
    /// `broker` serves; the others connect.
    pub const PARTIES: [&'static str; 3] = ["broker", "bridge", "viewer"];

    /// Certificates for a broker on this machine and for those who connect to it.
    pub fn new() -> Result<Self> {
        Self::make().context("the demonstration's certificates could not be made")
    }

    fn make() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Heliograph demonstration authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let ca_pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);

        let mut parties = Vec::new();
        for name in Self::PARTIES {
            let serves = name == "broker";
            let names = if serves {
                vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]
            } else {
                vec![]
            };
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![if serves {
                ExtendedKeyUsagePurpose::ServerAuth
            } else {
                ExtendedKeyUsagePurpose::ClientAuth
            }];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            parties.push(Party {
                name,
                cert_pem: params.signed_by(&key, &issuer)?.pem(),
                key_pem: key.serialize_pem(),
            });
        }
        Ok(Self { ca_pem, parties })
    }

    /// Writes `ca.pem`, and `PARTY.pem` and `PARTY.key` of each party, into `dir`; keys are
    /// readable by their owner alone.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)
            .with_context(|| format!("{}: cannot be made; name another folder", dir.display()))?;
        write(&dir.join("ca.pem"), &self.ca_pem, false)?;
        for party in &self.parties {
            let files = Files::of(dir, party.name);
            write(&files.cert, &party.cert_pem, false)?;
            write(&files.key, &party.key_pem, true)?;
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str, private: bool) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    if private {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("{}: cannot be written; name another folder", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_demo_writes_can_be_loaded() {
        let dir = tempfile::tempdir().expect("a folder");
        Demo::new()
            .expect("made")
            .write(dir.path())
            .expect("written");
        for party in Demo::PARTIES {
            let credentials = Files::of(dir.path(), party).load().expect("loaded");
            credentials.client().expect("a client's configuration");
            credentials.server().expect("a server's configuration");
        }
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_a_key() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        Demo::new()
            .expect("made")
            .write(dir.path())
            .expect("written");
        let mode = fs::metadata(dir.path().join("bridge.key"))
            .expect("written")
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0);
    }

    #[test]
    fn a_bad_file_is_named_together_with_its_remedy() {
        let dir = tempfile::tempdir().expect("a folder");
        Demo::new()
            .expect("made")
            .write(dir.path())
            .expect("written");
        let good = Files::of(dir.path(), "bridge");
        let error = |files: Files| match files.load().and_then(|c| c.client()) {
            Ok(_) => panic!("accepted"),
            Err(e) => e.to_string(),
        };

        let e = error(Files {
            ca: dir.path().join("none.pem"),
            ..good.clone()
        });
        assert!(e.contains("none.pem: cannot be read"), "{e}");

        let e = error(Files {
            cert: good.key.clone(),
            ..good.clone()
        });
        assert!(e.contains("bridge.key: holds no certificate; give"), "{e}");

        let e = error(Files {
            key: good.cert.clone(),
            ..good.clone()
        });
        assert!(e.contains("bridge.pem: holds no private key; give"), "{e}");

        let e = error(Files {
            key: dir.path().join("viewer.key"),
            ..good.clone()
        });
        assert!(e.contains("do not belong together"), "{e}");

        let broken = dir.path().join("broken.pem");
        fs::write(
            &broken,
            "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
        )
        .expect("written");
        let e = error(Files {
            cert: broken,
            ..good
        });
        assert!(e.contains("broken.pem: is not PEM"), "{e}");
    }
}
