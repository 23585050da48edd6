"""The credit audit as a command: which definitions of segments give good credit, without training.

    segcredit audit audit.toml --output runs/audit

What ``[audit]`` may say is in ``settings``; what is measured, in ``credits`` and ``gradients``;
which figures there are, in ``figures``; the files, in ``store``; the order of the work, in
``runner``. The figures themselves are functions of arrays: ``segcredit.study.audit``.
"""

from segcredit.study.auditing.comparison import compare_credits as compare_credits
from segcredit.study.auditing.credits import Credits as Credits
from segcredit.study.auditing.loading import Audit as Audit
from segcredit.study.auditing.loading import failed_units as failed_units
from segcredit.study.auditing.loading import load_audit as load_audit
from segcredit.study.auditing.runner import Progress as Progress
from segcredit.study.auditing.runner import audit as audit
from segcredit.study.auditing.runner import audit_directory as audit_directory
from segcredit.study.auditing.settings import AuditConfig as AuditConfig
from segcredit.study.auditing.settings import load_audit_config as load_audit_config
