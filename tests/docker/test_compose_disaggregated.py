"""The compose file of two servers and a router, by what an operator relies on. Docker itself is not asked."""

import ipaddress
import json
import re

import pytest
import yaml

from tests.docker.dockerfile import DIRECTORY, of

SERVICES = yaml.safe_load((DIRECTORY / "compose.disaggregated.yaml").read_text())["services"]
SERVERS = ("prefill", "decode")


def argument(service: str, name: str) -> dict:
    [given] = [each for each in SERVICES[service]["command"] if each.startswith(f"--{name}=")]
    return json.loads(re.sub(r"\$\{\w+:-(\w+)\}", r"\1", given.partition("=")[2]))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_the_codec_and_can_be_asked_for_blocks(name):
    service = SERVICES[name]
    assert argument(name, "additional-config") == {"palu": {"codec": "/models/codec"}}
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    assert argument(name, "kv-transfer-config") == transfer
    assert service["environment"]["VLLM_NIXL_SIDE_CHANNEL_HOST"] == name, "the other one asks by this name"
    assert service["command"][0] == "/models/model" and "ports" not in service
    assert all(volume.endswith(":ro") for volume in service["volumes"])


def test_the_router_knows_both_and_alone_is_reached_from_the_machine():
    router = SERVICES["router"]
    assert set(SERVICES) == {*SERVERS, "router"} and set(router["depends_on"]) == set(SERVERS)
    assert {"--prefill=http://prefill:8000", "--decode=http://decode:8000", "--kv-connector=nixl"} <= {
        *router["command"]
    }
    [port] = router["ports"]
    assert ipaddress.ip_address(port.partition(":")[0]).is_loopback
    assert of(DIRECTORY / "Dockerfile.router", "ENTRYPOINT")[-1].arguments == ["vllm-router"]


@pytest.mark.parametrize("name", SERVICES)
def test_rights_and_resources_are_limited(name):
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["pull_policy"] == "never"
    assert "no-new-privileges:true" in service["security_opt"] and not service.get("privileged")
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
