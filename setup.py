"""Puts stagecraft_startup.pth beside the installed packages; everything else stands in pyproject.toml.

The file gives `kfp run FILE.py` to Stagecraft whoever wrote bin/kfp last, and lets `dvc` find this environment's python
without activation. A .pth file works only in site-packages, which setuptools reaches through data_files alone.
"""

import os
import sysconfig

from setuptools import Distribution, setup


class WithData(Distribution):
    """setuptools 84 installs the data files of an editable wheel only if `has_data` says so (command/editable_wheel.py:360)."""

    def has_data(self) -> bool:
        return self.has_data_files()


site_packages = os.path.relpath(sysconfig.get_path("purelib"), sysconfig.get_path("data"))
setup(distclass=WithData, data_files=[(site_packages, ["stagecraft_startup.pth"])])
