"""The authorities behind Pulsar's certificates: a root that signs one subordinate, which cert-manager asks."""

import aws_cdk as cdk
from aws_cdk import aws_acmpca as acmpca
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from babblebox import names
from babblebox.findings import explain
from babblebox.stages import Stage

KEY = "RSA_4096"
SIGNATURE = "SHA512WITHRSA"
"""Pulsar's clients in all languages take RSA."""


class PrivateCA(cdk.Stack):
    """Root and subordinate, both activated; the root's certificate as a secret that all clients of Pulsar trust."""

    def __init__(self, scope: Construct, id: str, *, stage: Stage) -> None:
        super().__init__(scope, id)
        root = self._authority(stage, "Root", "ROOT")
        root_certificate = acmpca.CfnCertificate(
            self,
            "RootCertificate",
            certificate_authority_arn=root.attr_arn,
            certificate_signing_request=root.attr_certificate_signing_request,
            signing_algorithm=SIGNATURE,
            template_arn=self._template("RootCACertificate/V1"),
            validity=_until(stage.root_ca_ends),
        )
        root_active = acmpca.CfnCertificateAuthorityActivation(
            self,
            "RootActivation",
            certificate_authority_arn=root.attr_arn,
            certificate=root_certificate.attr_certificate,
        )
        self.subordinate = self._authority(stage, "Subordinate", "SUBORDINATE")
        certificate = acmpca.CfnCertificate(
            self,
            "SubordinateCertificate",
            certificate_authority_arn=root.attr_arn,
            certificate_signing_request=self.subordinate.attr_certificate_signing_request,
            signing_algorithm=SIGNATURE,
            template_arn=self._template("SubordinateCACertificate_PathLen0/V1"),
            validity=_until(stage.subordinate_ca_ends),
        )
        certificate.node.add_dependency(root_active)
        acmpca.CfnCertificateAuthorityActivation(
            self,
            "SubordinateActivation",
            certificate_authority_arn=self.subordinate.attr_arn,
            certificate=certificate.attr_certificate,
            certificate_chain=root_active.attr_complete_certificate_chain,
        )
        self.trust = self._trust(stage, root_certificate)
        cdk.CfnOutput(self, "SubordinateArn", value=self.subordinate.attr_arn)

    def _authority(self, stage: Stage, name: str, kind: str) -> acmpca.CfnCertificateAuthority:
        authority = acmpca.CfnCertificateAuthority(
            self,
            name,
            type=kind,
            key_algorithm=KEY,
            signing_algorithm=SIGNATURE,
            key_storage_security_standard="FIPS_140_2_LEVEL_3_OR_HIGHER",
            usage_mode="GENERAL_PURPOSE",
            subject=acmpca.CfnCertificateAuthority.SubjectProperty(
                common_name=f"{names.PROJECT} {stage.name} {name.lower()}",
                organization=names.PROJECT,
                organizational_unit=stage.name,
            ),
        )
        authority.apply_removal_policy(cdk.RemovalPolicy.RETAIN)  # it can be restored for a month, then never again
        return authority

    def _template(self, name: str) -> str:
        return f"arn:{cdk.Aws.PARTITION}:acm-pca:::template/{name}"

    def _trust(self, stage: Stage, root: acmpca.CfnCertificate) -> secretsmanager.Secret:
        secret = secretsmanager.Secret(
            self,
            "Trust",
            secret_name=names.secret(stage.name, "pulsar-ca"),
            description="The root's certificate (PEM), public; beside the tokens for the sake of who needs both",
            secret_string_value=cdk.SecretValue.unsafe_plain_text(root.attr_certificate),
        )
        explain(secret, "A certificate, which is public and changes with the root alone.", "SMG4")
        return secret


def _until(day: str) -> acmpca.CfnCertificate.ValidityProperty:
    return acmpca.CfnCertificate.ValidityProperty(type="END_DATE", value=int(day.replace("-", "") + "000000"))
