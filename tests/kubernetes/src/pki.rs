//! Certificates, made when a cluster is raised.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::{Error, Result, write};

/// A certificate authority and the directory that its certificates are in.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

/// Files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

fn failed(error: rcgen::Error) -> Error {
    Error::new("make a certificate", error)
}

fn pair(dir: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<Pair> {
    let pair = Pair { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    write(&pair.certificate, certificate)?;
    write(&pair.key, key.serialize_pem())?;
    Ok(pair)
}

impl Authority {
    /// A new one; `dir` has to be there. Its own certificate is `ca.crt`, its key `ca.key`.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(dir: &Path) -> Result<Self> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?;
        pair(dir, "ca", &certificate.pem(), &key)?;
        Ok(Self { issuer: Issuer::new(params, key), dir: dir.to_owned() })
    }

    /// Its own certificate, which everybody trusts.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Its own key.
    pub fn key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// A certificate for user `user` of `group` (both as RBAC knows them) or for a server reached as `names` (host
    /// names and addresses), in files called `name`.
    ///
    /// # Errors
    /// When files cannot be written, or a name cannot be one.
    pub fn issue(&self, name: &str, user: &str, group: Option<&str>, names: &[String]) -> Result<Pair> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        pair(&self.dir, name, &certificate.pem(), &key)
    }
}

/// The key with which tokens of service accounts are signed, `service-accounts.key`, and the one with which they are
/// verified, `service-accounts.pub`.
///
/// # Errors
/// When the files cannot be written.
pub fn service_account_key(dir: &Path) -> Result<()> {
    let key = KeyPair::generate().map_err(failed)?;
    write(&dir.join("service-accounts.key"), key.serialize_pem())?;
    write(&dir.join("service-accounts.pub"), key.public_key_pem())
}
