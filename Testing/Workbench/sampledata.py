"""Stand-in for Slicer's module SampleData: modules register samples, the File menu of the workbench offers them."""

import dataclasses
import logging
import os
import urllib.parse
import urllib.request

import slicer


@dataclasses.dataclass
class SampleDataSource:
    """One sample: one or several files, or a function that makes it."""

    sampleName: str | None = None
    sampleDescription: str | None = None
    uris: object = None
    fileNames: object = None
    nodeNames: object = None
    checksums: object = None
    loadFiles: object = None
    customDownloader: object = None
    thumbnailFileName: str | None = None
    loadFileTypes: object = None
    loadFileProperties: dict | None = None
    loadFileType: object = None

    def __post_init__(self):
        self.sampleDescription = self.sampleDescription or self.sampleName
        self.loadFileTypes = self.loadFileTypes or self.loadFileType
        lists = ("fileNames", "nodeNames", "checksums", "loadFiles", "loadFileTypes")
        if isinstance(self.uris, str):
            self.uris = [self.uris]
            for name in lists:
                setattr(self, name, [getattr(self, name)])
        for name in lists[1:]:
            setattr(self, name, getattr(self, name) or [None] * len(self.uris))
        if {len(getattr(self, name)) for name in lists} != {len(self.uris)}:
            raise ValueError("All fields of sample data source must have the same length")


class SampleDataLogic:
    """Registers samples and loads them."""

    @staticmethod
    def _registered(name: str) -> dict:
        """What Slicer keeps in ``slicer.modules.<name>``."""
        if not hasattr(slicer.modules, name):
            setattr(slicer.modules, name, {})
        return getattr(slicer.modules, name)

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        SampleDataLogic._registered("sampleDataSourceCategories").setdefault(category, {})["title"] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ):
        fields = {key: value for key, value in locals().items() if key != "category"}
        source = SampleDataSource(**fields)
        sources = SampleDataLogic._registered("sampleDataSources").setdefault(category, [])
        if source not in sources:
            sources.append(source)

    @staticmethod
    def registerUrlRewriteRule(name, rewriteFunction):
        SampleDataLogic._registered("sampleDataUrlRewriteRules")[name] = rewriteFunction

    @staticmethod
    def categoryTitle(category):
        return SampleDataLogic._registered("sampleDataSourceCategories").get(category, {}).get("title", category)

    @staticmethod
    def sampleDataSourcesByCategory(category=None):
        sources = SampleDataLogic._registered("sampleDataSources")
        return sources if category is None else sources.get(category, [])

    def __init__(self, logMessage=None):
        if logMessage:
            self.logMessage = logMessage

    def logMessage(self, message, logLevel=logging.DEBUG):
        logging.log(logLevel, message)

    def sourceForSampleName(self, sampleName):
        sources = (source for sources in self.sampleDataSourcesByCategory().values() for source in sources)
        return next((source for source in sources if source.sampleName == sampleName), None)

    def downloadSamples(self, sampleName):
        source = self.sourceForSampleName(sampleName)
        return self.downloadFromSource(source) if source else []

    def downloadSample(self, sampleName):
        return self.downloadSamples(sampleName)[0]

    def downloadFileIntoCache(self, uri, name, checksum=None, forceDownload=False):
        for rule in self._registered("sampleDataUrlRewriteRules").values():
            uri = rule(uri)
        folder = slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory()
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        if forceDownload or not os.path.exists(path):
            try:
                urllib.request.urlretrieve(uri, path)
            except OSError as error:
                self.logMessage(f"Download failed: {error}", logging.ERROR)
                raise ValueError(f"Failed to download {uri} to {path}") from error
        return path

    def downloadFromSource(self, source, maximumAttemptsCount=3, forceDownload=False):
        """As in Slicer, ``customDownloader`` counts for nothing here."""
        nodes, paths = [], []
        defaults = all(name is None for name in source.nodeNames)
        fields = (source.uris, source.fileNames, source.nodeNames, source.checksums, source.loadFiles)
        for uri, file_name, node_name, checksum, load, kind in zip(*fields, source.loadFileTypes, strict=True):
            file_name = file_name or os.path.basename(urllib.parse.urlparse(uri).path)
            if node_name is None and load is not False and defaults:
                node_name = os.path.splitext(file_name)[0]
            for _ in range(maximumAttemptsCount):
                try:
                    path = self.downloadFileIntoCache(uri, file_name, checksum, forceDownload)
                except ValueError:
                    continue
                if node_name is None or load is False:
                    paths.append(path)
                else:
                    properties = {**(source.loadFileProperties or {}), "name": node_name}
                    nodes.append(slicer.util.loadNodeFromFile(path, kind or "VolumeFile", properties))
                break
        return nodes or paths


def downloadSample(sampleName):
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName):
    return SampleDataLogic().downloadSamples(sampleName)


def load(source: SampleDataSource):
    """What a click on a sample in Slicer's Sample Data module does."""
    return (source.customDownloader or SampleDataLogic().downloadFromSource)(source)
