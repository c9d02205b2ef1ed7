//! Certificates, which each run makes for itself.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm,
    date_time_ymd,
};

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Certified {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority::with(name, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub fn with(name: &str, algorithm: &'static SignatureAlgorithm) -> Authority {
        let (mut params, key) = (params(name, &[]), key(algorithm));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed").pem();
        Authority {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// An intermediate authority, which this one has signed.
    pub fn below(&self, name: &str) -> Authority {
        let (mut params, key) = (params(name, &[]), key(&rcgen::PKCS_ECDSA_P256_SHA256));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Authority {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, common_name: &str, names: &[&str]) -> Certified {
        self.issue_within(common_name, names, (2020, 2120))
    }

    /// A certificate that is valid from the first to the second year.
    pub fn issue_within(&self, common_name: &str, names: &[&str], years: (i32, i32)) -> Certified {
        let (mut params, key) = (
            params(common_name, names),
            key(&rcgen::PKCS_ECDSA_P256_SHA256),
        );
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        Certified {
            certificate: params.signed_by(&key, &self.issuer).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A self-signed certificate. `is_authority` makes it an authority, as `openssl req -x509` does.
pub fn self_signed(names: &[&str], is_authority: bool, years: (i32, i32)) -> Certified {
    let (mut params, key) = (params("self", names), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    if is_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    Certified {
        certificate: params.self_signed(&key).expect("signed").pem(),
        key: key.serialize_pem(),
    }
}
